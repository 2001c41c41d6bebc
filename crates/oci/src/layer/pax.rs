//! Writes and parses pax extended headers: `LENGTH KEY=VALUE\n`, where the length includes itself (POSIX.1-2017, pax,
//! "pax Extended Header").

use std::io::{self, Write};

use tar::{EntryType, Header};

/// Tar block size in bytes; everything is padded to it.
pub const BLOCK: u64 = 512;
/// The largest number in a header field of twelve octal digits (one is the terminator).
const OCTAL_MAX: u64 = 0o777_7777_7777;

/// The records of one extended header.
#[derive(Default)]
pub struct Records(Vec<u8>);

impl Records {
    /// Their size in bytes.
    pub fn bytes(&self) -> usize {
        self.0.len()
    }

    /// Adds a record.
    pub fn add(&mut self, key: &[u8], value: &[u8]) {
        let rest = key.len() + value.len() + 3; // blank, equals sign, end of line
        let mut length = rest + 1;
        while rest + digits(length) != length {
            length = rest + digits(length);
        }
        self.0.extend_from_slice(length.to_string().as_bytes());
        self.0.push(b' ');
        self.0.extend_from_slice(key);
        self.0.push(b'=');
        self.0.extend_from_slice(value);
        self.0.push(b'\n');
    }
}

fn digits(number: usize) -> usize {
    number.to_string().len()
}

/// Parses records. Ends with `None` at the first invalid one.
pub fn records(mut rest: &[u8]) -> impl Iterator<Item = Option<(&[u8], &[u8])>> {
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let parsed = record(rest);
        rest = parsed.map_or(&[], |(_, _, after)| after);
        Some(parsed.map(|(key, value, _)| (key, value)))
    })
}

fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let blank = bytes.iter().take(20).position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&bytes[..blank]).ok()?.parse().ok()?;
    let body = bytes.get(blank + 1..length)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|byte| *byte == b'=')?;
    Some((&body[..equals], &body[equals + 1..], &bytes[length..]))
}

/// An entry to be written.
pub struct Entry<'a> {
    /// Its type.
    pub kind: EntryType,
    /// Its path.
    pub path: &'a [u8],
    /// The target of a hard or symbolic link.
    pub link: &'a [u8],
    /// Permission bits.
    pub mode: u32,
    /// Its user id.
    pub uid: u32,
    /// Its group id.
    pub gid: u32,
    /// Seconds since 1970 and nanoseconds.
    pub mtime: (i64, u32),
    /// Bytes of data that follow.
    pub size: u64,
    /// Further pax records.
    pub records: Records,
}

/// Writes an entry's header, preceded by an extended header if needed.
///
/// # Errors
/// If writing fails.
pub fn write_header(out: &mut impl Write, mut entry: Entry<'_>) -> io::Result<()> {
    let mut header = Header::new_ustar();
    header.set_entry_type(entry.kind);
    header.set_mode(entry.mode);
    header.set_uid(u64::from(entry.uid));
    header.set_gid(u64::from(entry.gid));
    let mut binary = false;
    let mut long = Vec::new();
    let fields = header.as_ustar_mut().ok_or_else(|| io::Error::other("not a ustar header"))?;
    for (key, value, field) in [("path", entry.path, &mut fields.name), ("linkpath", entry.link, &mut fields.linkname)]
    {
        let fits = value.len() <= field.len() && value.is_ascii();
        let count = value.len().min(field.len());
        field[..count].copy_from_slice(&value[..count]);
        if value.len() > field.len() {
            long.push((key, value));
        }
        if !fits {
            binary |= std::str::from_utf8(value).is_err();
            entry.records.add(key.as_bytes(), value);
        }
    }
    if binary {
        // "One or more octets of unspecified encoding": POSIX's charset for names that are not UTF-8.
        let mut first = Records::default();
        first.add(b"hdrcharset", b"BINARY");
        first.0.append(&mut entry.records.0);
        entry.records = first;
    }
    let (seconds, nanos) = entry.mtime;
    let small = u64::try_from(seconds).ok().filter(|seconds| *seconds <= OCTAL_MAX);
    header.set_mtime(small.unwrap_or(0));
    if small.is_none() || nanos != 0 {
        entry.records.add(b"mtime", time(seconds, nanos).as_bytes());
    }
    header.set_size(entry.size);
    if entry.size > OCTAL_MAX {
        entry.records.add(b"size", entry.size.to_string().as_bytes());
    }
    for (key, value) in long {
        write_long(out, if key == "path" { EntryType::GNULongName } else { EntryType::GNULongLink }, value)?;
    }
    write_meta(out, EntryType::XHeader, "PaxHeaders.0/x", &entry.records.0)?;
    header.set_cksum();
    out.write_all(header.as_bytes())
}

/// Writes a long name a second time as a GNU header (GNU tar manual, "Basic Tar Format"), because busybox ignores pax
/// names.
fn write_long(out: &mut impl Write, kind: EntryType, value: &[u8]) -> io::Result<()> {
    write_meta(out, kind, "././@LongLink", &[value, b"\0"].concat())
}

fn write_meta(out: &mut impl Write, kind: EntryType, name: &str, content: &[u8]) -> io::Result<()> {
    if content.is_empty() {
        return Ok(());
    }
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(content.len() as u64);
    header.set_cksum();
    out.write_all(header.as_bytes())?;
    out.write_all(content)?;
    pad(out, content.len() as u64)
}

/// Pads the last block of `size` bytes.
///
/// # Errors
/// If writing fails.
pub fn pad(out: &mut impl Write, size: u64) -> io::Result<()> {
    out.write_all(&[0; BLOCK as usize][..padding(size) as usize])
}

/// Bytes of padding after `size` bytes.
pub fn padding(size: u64) -> u64 {
    (BLOCK - size % BLOCK) % BLOCK
}

/// A time as a decimal number. Before 1970, the fraction counts backwards as well.
fn time(seconds: i64, nanos: u32) -> String {
    let (sign, whole, part) = match (seconds < 0, nanos) {
        (false, _) => ("", seconds.unsigned_abs(), nanos),
        (true, 0) => ("-", seconds.unsigned_abs(), 0),
        (true, _) => ("-", seconds.unsigned_abs() - 1, 1_000_000_000 - nanos),
    };
    let text = format!("{sign}{whole}.{part:09}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Parses a decimal time, rounded down to nanoseconds.
pub fn parse_time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    if !whole.bytes().chain(part.bytes()).all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    let nanos: u32 = format!("{:0<9}", part.get(..9).unwrap_or(part)).parse().ok()?;
    match (negative, nanos) {
        (false, _) => Some((seconds, nanos)),
        (true, 0) => Some((-seconds, 0)),
        (true, _) => Some((-seconds - 1, 1_000_000_000 - nanos)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_count_themselves() {
        for size in [0, 1, 3, 90, 91, 92, 93, 990, 991, 992, 70_000] {
            let mut written = Records::default();
            let value = vec![b'\n'; size];
            written.add(b"key", &value);
            written.add(b"k", b"=");
            let read: Vec<_> = records(&written.0).collect();
            assert_eq!(read, [Some((&b"key"[..], &value[..])), Some((&b"k"[..], &b"="[..]))]);
        }
        for bad in ["", "x", "5 a=b", "4 a=\n6 a=b", "99999999999999999999 a=b\n", "0 a=b\n", "2 \n"] {
            assert!(bad.is_empty() || records(bad.as_bytes()).any(|record| record.is_none()), "{bad}");
        }
    }

    #[test]
    fn times_come_back() {
        for (seconds, nanos, text) in [
            (0, 0, "0"),
            (1, 5, "1.000000005"),
            (-1, 0, "-1"),
            (-1, 999_999_999, "-0.000000001"),
            (-2, 1, "-1.999999999"),
        ] {
            assert_eq!(time(seconds, nanos), text);
            assert_eq!(parse_time(text.as_bytes()), Some((seconds, nanos)));
        }
        assert_eq!(parse_time(b"1.0000000019"), Some((1, 1)));
        for bad in ["x", "", "1.x", "--1", "1e5", "+1", "99999999999999999999"] {
            assert_eq!(parse_time(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn sizes_have_no_end_at_eight_gibibytes() {
        for size in [OCTAL_MAX, OCTAL_MAX + 1, 1 << 40] {
            let mut written = Vec::new();
            let (kind, records) = (EntryType::Regular, Records::default());
            let entry = Entry { kind, path: b"a", link: b"", mode: 0, uid: 0, gid: 0, mtime: (0, 0), size, records };
            write_header(&mut written, entry).unwrap();
            assert_eq!(written.len(), if size > OCTAL_MAX { 1536 } else { 512 });
            let found = crate::layer::read::Reader::new(&written[..], u64::MAX).next_entry().unwrap().unwrap();
            assert_eq!(found.size, size);
            // Also for readers without pax support.
            let bare = &written[written.len() - 512..];
            assert_eq!(crate::layer::read::Reader::new(bare, u64::MAX).next_entry().unwrap().unwrap().size, size);
        }
    }
}
