//! Parts of files that are asked for (RFC 9110, 14).

use axum::http::{HeaderMap, header};
use jiff::Timestamp;

use super::{Present, parse_date, parse_tag, single};

/// What of a file is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// All.
    Whole,
    /// From this byte, so many.
    Part(u64, u64),
    /// Nothing of what there is.
    Unsatisfiable,
}

impl Range {
    /// What a GET wants of a file of `size` bytes. Several ranges at once, other units, and what is malformed are ignored, as
    /// RFC 9110, 14.2 allows.
    pub fn of(headers: &HeaderMap, size: u64, present: &Present) -> Self {
        let Some(wanted) = single(headers, &header::RANGE).and_then(|text| Self::parse(text, size)) else {
            return Self::Whole;
        };
        let is_same = headers.get(header::IF_RANGE).is_none_or(|_| is_same(headers, present));
        if is_same { wanted } else { Self::Whole }
    }

    fn parse(text: &str, size: u64) -> Option<Self> {
        let (unit, set) = text.split_once('=')?;
        let (first, last) = set.trim().split_once('-').filter(|_| unit.trim().eq_ignore_ascii_case("bytes"))?;
        let number = |digits: &str| {
            let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            is_number.then(|| digits.parse().unwrap_or(u64::MAX))
        };
        let (start, end) = match (first, last) {
            ("", last) => match number(last)? {
                0 => return Some(Self::Unsatisfiable),
                // There is no way to name a part of nothing.
                _ if size == 0 => return None,
                suffix => (size.saturating_sub(suffix), size),
            },
            (first, "") => (number(first)?, size),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                if first > last {
                    return None;
                }
                (first, last.saturating_add(1).min(size))
            }
        };
        if start >= size { Some(Self::Unsatisfiable) } else { Some(Self::Part(start, end - start)) }
    }
}

/// Whether `If-Range` names what is there: by its strong tag, or by a date that is old enough to tell one state from the next.
fn is_same(headers: &HeaderMap, present: &Present) -> bool {
    let text = single(headers, &header::IF_RANGE).unwrap_or_default().trim();
    if let Some((tag, after)) = parse_tag(text.as_bytes()) {
        return after.is_empty()
            && !tag.is_weak
            && present.tag.as_ref().is_some_and(|own| own.as_bytes() == tag.opaque);
    }
    let is_old = |modified: &i64| *modified + 1 < Timestamp::now().as_second();
    present.modified.filter(is_old).is_some_and(|modified| parse_date(text) == Some(modified))
}
