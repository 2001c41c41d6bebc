//! Converts access control lists between the kernel's attributes (Linux, `posix_acl_xattr.h`) and tar records
//! `SCHILY.acl.access` and `SCHILY.acl.default` (star(5), GNU tar, bsdtar).

use std::fmt::Write as _;

use super::Ids;
use super::read::TarEntry;

/// Attributes and their tar records.
pub const LISTS: [(&[u8], &[u8]); 2] =
    [(b"system.posix_acl_access", b"SCHILY.acl.access"), (b"system.posix_acl_default", b"SCHILY.acl.default")];
/// Mode bits that hold the mask of a list; cleared if the list is left out.
pub const GROUP_BITS: u32 = 0o070;

const VERSION: u32 = 2;
/// The id of entries without a user or group.
const NOBODY: u32 = u32::MAX;
/// Entry tags: owner, user, owning group, group, mask, others.
const TAGS: [(u16, &str, bool); 6] = [
    (0x01, "user", false),
    (0x02, "user", true),
    (0x04, "group", false),
    (0x08, "group", true),
    (0x10, "mask", false),
    (0x20, "other", false),
];

/// An entry of a list, with its id in the container.
struct Entry {
    tag: u16,
    permissions: u16,
    id: u32,
}

/// The tar record of an attribute, if it is a list.
pub fn record_of(attribute: &[u8]) -> Option<&'static [u8]> {
    LISTS.iter().find(|(name, _)| *name == attribute).map(|(_, record)| *record)
}

/// The tar record of an attribute by name.
fn known(attribute: &[u8]) -> Option<&'static [u8]> {
    LISTS.iter().find(|(name, _)| *name == attribute).map(|(name, _)| *name)
}

/// The attribute of a tar record, if it is a list.
pub fn attribute_of(record: &[u8]) -> Option<&'static [u8]> {
    LISTS.iter().find(|(_, name)| *name == record).map(|(attribute, _)| *attribute)
}

/// The lists of an entry in the kernel's format; `None` for one that is invalid.
pub fn lists(found: &TarEntry, ids: Ids) -> impl Iterator<Item = (&'static [u8], Option<Vec<u8>>)> {
    let texts = found.lists.iter().map(move |(name, text)| (*name, from_text(text, ids)));
    // In the kernel's format with container ids, as some archivers write it.
    let raw = found.attributes.iter().filter_map(move |(name, value)| {
        let name = known(name).filter(|_| found.lists.is_empty())?;
        Some((name, to_text(value, Ids::UNMAPPED).and_then(|text| from_text(text.as_bytes(), ids))))
    });
    texts.chain(raw)
}

/// Converts the kernel's format to text.
pub fn to_text(value: &[u8], ids: Ids) -> Option<String> {
    let entries = value.strip_prefix(&VERSION.to_le_bytes())?;
    let mut text = String::new();
    for entry in entries.chunks(8) {
        let (tag, rest) = entry.split_first_chunk::<2>()?;
        let (permissions, id) = rest.split_first_chunk::<2>()?;
        let (tag, permissions) = (u16::from_le_bytes(*tag), u16::from_le_bytes(*permissions));
        let id = u32::from_le_bytes(id.try_into().ok()?);
        let (_, word, has_id) = TAGS.iter().find(|(known, _, _)| *known == tag)?;
        let id = if *has_id { ids.to_container(id).to_string() } else { String::new() };
        let bit = |bit: u16, letter: char| if permissions & bit != 0 { letter } else { '-' };
        let separator = if text.is_empty() { "" } else { "," };
        // Writing to a string cannot fail.
        let _ = write!(text, "{separator}{word}:{id}:{}{}{}", bit(4, 'r'), bit(2, 'w'), bit(1, 'x'));
    }
    Some(text)
}

/// Converts text to the kernel's format. `None` if it is invalid or has a user without a number.
pub fn from_text(text: &[u8], ids: Ids) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(text).ok()?;
    let lines = text.split([',', '\n']).map(|line| line.split('#').next().unwrap_or_default().trim());
    let entries: Option<Vec<Entry>> = lines.filter(|line| !line.is_empty()).map(entry).collect();
    let mut entries = entries?;
    // The kernel wants entries sorted by tag and id, and requires some of them (acl(5)).
    entries.sort_by_key(|entry| (entry.tag, entry.id));
    let count = |tag: u16| entries.iter().filter(|entry| entry.tag == tag).count();
    let (masks, names_any) = (count(0x10), count(0x02) + count(0x08) > 0);
    if [0x01, 0x04, 0x20].iter().any(|tag| count(*tag) != 1) || masks > 1 || (names_any && masks == 0) {
        return None;
    }
    let mut value = VERSION.to_le_bytes().to_vec();
    for Entry { tag, permissions, id } in entries {
        let id = if id == NOBODY { NOBODY } else { ids.to_host(id.into()) };
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    Some(value)
}

fn entry(line: &str) -> Option<Entry> {
    let fields: Vec<&str> = line.split(':').map(str::trim).collect();
    let [word, name, permissions, number @ ..] = &fields[..] else { return None };
    let (tag, _, has_id) = TAGS
        .iter()
        .find(|(_, known, has_id)| (known == word || known.get(..1) == Some(*word)) && *has_id != name.is_empty())?;
    let id = match number {
        _ if !has_id => NOBODY,
        [] => name.parse().ok()?,
        [number] => number.parse().ok()?,
        _ => return None,
    };
    if *has_id && id == NOBODY {
        return None;
    }
    let bits = permissions.chars().try_fold(0, |bits, letter| {
        Some(
            bits | match letter {
                'r' => 4,
                'w' => 2,
                'x' => 1,
                '-' => 0,
                _ => return None,
            },
        )
    })?;
    Some(Entry { tag: *tag, permissions: bits, id })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_come_back_and_others_are_read() {
        let ids = Ids::based(100_000);
        let text = "user::rwx,user:1000:r-x,group::r--,group:7:-w-,mask::rwx,other::---";
        let value = from_text(text.as_bytes(), ids).unwrap();
        assert_eq!(value.len(), 4 + 6 * 8);
        assert_eq!(value[16..20], 101_000_u32.to_le_bytes());
        assert_eq!(to_text(&value, ids).unwrap(), text);
        // As GNU tar and star write them, in any order.
        let others = "mask::rwx\nuser::rwx # the owner\nuser:joe:r-x:1000\ngroup::r--\ng:7:-w-\no::---\n";
        assert_eq!(from_text(others.as_bytes(), ids).unwrap(), value);
        for bad in [
            "",
            "user:joe:rwx",
            "user::rwy",
            "nobody::rwx",
            "user",
            "user:4294967295:r--",
            "user:1:r--:x",
            "mask:1:r--",
            "user::rwx,group::r--",
            "user::rwx,user:1:r--,group::r--,other::---",
            "user::rwx,user::r--,group::r--,other::---",
        ] {
            assert_eq!(from_text(bad.as_bytes(), ids), None, "{bad}");
        }
        assert_eq!(to_text(b"\x01\0\0\0", ids), None);
        assert_eq!(to_text(b"\x02\0\0\0\x01\0\x07", ids), None);
    }
}
