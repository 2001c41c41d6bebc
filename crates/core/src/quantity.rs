//! Amounts of memory, as people write them.

use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

/// Bytes. Read from a number, or from a text with a Kubernetes-style suffix (`512Mi`, `4Gi`, `1G`; also `MiB`, `GB`);
/// written as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is not an amount of memory: write bytes, or a number with Ki, Mi, Gi, K, M or G");
        let text_trimmed = text.trim();
        let end = text_trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(text_trimmed.len());
        let (digits, suffix) = text_trimmed.split_at(end);
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        let factor: u64 = match suffix.trim().trim_end_matches(['B', 'b']) {
            "" => 1,
            "k" | "K" => 1_000,
            "Ki" | "ki" => 1 << 10,
            "m" | "M" => 1_000_000,
            "Mi" | "mi" => 1 << 20,
            "g" | "G" => 1_000_000_000,
            "Gi" | "gi" => 1 << 30,
            "Ti" | "ti" => 1 << 40,
            _ => return Err(wrong()),
        };
        number.checked_mul(factor).map(Bytes).ok_or_else(wrong)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(u64),
            Text(String),
        }
        match Written::deserialize(deserializer) {
            Ok(Written::Number(bytes)) => Ok(Bytes(bytes)),
            Ok(Written::Text(text)) => text.parse().map_err(serde::de::Error::custom),
            Err(_) => Err(serde::de::Error::custom("expected bytes as a number, or a text such as \"512Mi\"")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("512Mi", Some(512 << 20)),
            ("512MiB", Some(512 << 20)),
            ("4Gi", Some(4 << 30)),
            ("1 G", Some(1_000_000_000)),
            ("64k", Some(64_000)),
            ("", None),
            ("-1", None),
            ("1.5Gi", None),
            ("4X", None),
            ("99999999999Ti", None),
        ] {
            assert_eq!(text.parse::<Bytes>().ok(), bytes.map(Bytes), "{text:?}");
        }
    }
}
