//! Removes terminal queries from replayed output.
//!
//! A terminal answers some sequences as if the answer were typed. When output is replayed, a second answer would
//! reach a program that does not expect it. The sequences are those of ECMA-48, xterm (“Control Sequences”) and
//! kitty's keyboard and graphics protocols.

const ESC: u8 = 0x1b;
const BEL: u8 = 0x07;
/// ENQ: the terminal sends its “answerback”.
const ENQ: u8 = 0x05;
/// First byte of U+0080 to U+00BF in UTF-8. Terminals take U+0080 to U+009F like `ESC` and the letter 64 below.
const C1_LEAD: u8 = 0xc2;

/// Returns `bytes` without queries. An incomplete sequence at the end is kept.
pub fn without_queries(bytes: &[u8]) -> Vec<u8> {
    let mut kept = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(&first) = rest.first() {
        let (length, is_query) = match (first, introducer(rest)) {
            (ENQ, _) => (1, true),
            (_, None) => (1, false),
            (_, Some((kind, begin))) => sequence(kind, &rest[begin..], begin),
        };
        let (taken, after) = rest.split_at(length);
        if !is_query {
            kept.extend_from_slice(taken);
        }
        rest = after;
    }
    kept
}

/// The kind of the escape sequence at the beginning of `bytes`, and the length of its introducer.
fn introducer(bytes: &[u8]) -> Option<(u8, usize)> {
    match *bytes {
        [ESC, kind, ..] => Some((kind, 2)),
        [C1_LEAD, code @ 0x80..=0x9f, ..] => Some((code - 0x40, 2)),
        _ => None,
    }
}

/// The length of a sequence and whether it is a query. `begin` is the length of its introducer, `body` the bytes
/// after that.
fn sequence(kind: u8, body: &[u8], begin: usize) -> (usize, bool) {
    match kind {
        b'[' => control(body, begin),
        b'P' | b']' | b'_' => string(kind, body, begin),
        // DECID.
        b'Z' => (begin, true),
        // Only the first byte: what follows may begin another sequence.
        _ => (1, false),
    }
}

/// A control sequence (CSI): parameters, intermediates, and a final byte.
fn control(body: &[u8], begin: usize) -> (usize, bool) {
    let parameters = body.iter().take_while(|byte| (0x30..=0x3f).contains(*byte)).count();
    let intermediates = body[parameters..].iter().take_while(|byte| (0x20..=0x2f).contains(*byte)).count();
    let (parameters, behind) = body.split_at(parameters);
    let (intermediates, behind) = behind.split_at(intermediates);
    let Some(last @ 0x40..=0x7e) = behind.first() else { return (1, false) };
    let length = begin + parameters.len() + intermediates.len() + 1;
    (length, control_is_query(parameters, intermediates, *last))
}

fn control_is_query(parameters: &[u8], intermediates: &[u8], last: u8) -> bool {
    let (private, numbers) = match parameters.first() {
        Some(mark @ b'<'..=b'?') => (Some(*mark), &parameters[1..]),
        _ => (None, parameters),
    };
    let number = numbers.split(|byte| *byte == b';').next().unwrap_or_default();
    match (private, intermediates, last) {
        // Status and cursor position (DSR), attributes (DA), XTVERSION, parameters (DECREQTPARM).
        (None | Some(b'?'), b"", b'n') | (_, b"", b'c') | (Some(b'>'), b"", b'q') | (None, b"", b'x') => true,
        // Keyboard (kitty, XTQMODKEYS), graphics (XTSMGRAPHICS), modes (DECRQM).
        (Some(b'?'), b"", b'u' | b'm' | b'S') | (_, b"$", b'p') => true,
        // State (DECRQPSR, DECRQTSR), checksums (DECRQCRA), locator (DECRQLP), user-preferred set (DECRQUPSS).
        (_, b"$", b'w' | b'u') | (_, b"*", b'y') | (_, b"'", b'|') | (_, b"&", b'u') => true,
        // Window: its state, place, size and title.
        (None, b"", b't') => matches!(number, b"11" | b"13" | b"14" | b"15" | b"16" | b"18" | b"19" | b"20" | b"21"),
        _ => false,
    }
}

/// A string sequence: it ends with `ESC \`, U+009C or, for OSC, BEL.
fn string(kind: u8, body: &[u8], begin: usize) -> (usize, bool) {
    for at in 0..body.len() {
        let end = match body[at..] {
            [BEL, ..] if kind == b']' => 1,
            [ESC, b'\\', ..] | [C1_LEAD, 0x9c, ..] => 2,
            // Any other sequence cancels the string, so no byte is scanned twice.
            [ESC, _, ..] | [C1_LEAD, 0x80..=0x9f, ..] => 0,
            _ => continue,
        };
        // Some terminals answer cancelled queries, too.
        return (begin + at + end, string_is_query(kind, &body[..at]));
    }
    (1, false)
}

fn string_is_query(kind: u8, text: &[u8]) -> bool {
    match kind {
        // Settings (DECRQSS) and terminfo (XTGETTCAP).
        b'P' => text.starts_with(b"$q") || text.starts_with(b"+q"),
        // Colours, the clipboard, fonts.
        b']' => text.split(|byte| *byte == b';').any(|part| part == b"?"),
        // Graphics (kitty), which terminals answer unless told not to.
        _ => text.starts_with(b"G"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_answer_is_left_out() {
        for query in [
            "\x05",
            "\x1bZ",
            "\x1b[c",
            "\x1b[0c",
            "\x1b[>c",
            "\x1b[>0c",
            "\x1b[=c",
            "\x1b[5n",
            "\x1b[6n",
            "\x1b[?6n",
            "\x1b[?996n",
            "\x1b[>q",
            "\x1b[>0q",
            "\x1b[x",
            "\x1b[?u",
            "\x1b[?4m",
            "\x1b[?2;1;0S",
            "\x1b[?2026$p",
            "\x1b[4$p",
            "\x1b[1$w",
            "\x1b[1;1;1;1;2;2*y",
            "\x1b['|",
            "\x1b[&u",
            "\x1b[14t",
            "\x1b[18t",
            "\x1b[21;0t",
            "\x1bP$qm\x1b\\",
            "\x1bP+q544e\x1b\\",
            "\x1b]10;?\x07",
            "\x1b]11;?\x1b\\",
            "\x1b]4;1;?;2;?\x07",
            "\x1b]52;c;?\x07",
            "\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\",
            "\u{9b}6n",
            "\u{9d}11;?\u{9c}",
            "\u{90}$qm\u{9c}",
            "\u{9a}",
        ] {
            let shown = format!("before{query}after{query}{query}");
            assert_eq!(String::from_utf8_lossy(&without_queries(shown.as_bytes())), "beforeafter", "{query:?}");
        }
    }

    #[test]
    fn everything_else_is_kept() {
        for shown in [
            "",
            "plain\r\n\ttext",
            "é \u{a0} \u{c2}",
            "\x1b[31mred\x1b[0m",
            "\x1b[2J\x1b[H",
            "\x1b[?1049h",
            "\x1b[2 q",
            "\x1b[>4;2m",
            "\x1b[>1u",
            "\x1b[<u",
            "\x1b[22;0t",
            "\x1b[8;24;80t",
            "\x1b[s",
            "\x1b[u",
            "\x1b7",
            "\x1b(B",
            "\x1b=",
            "\x1b]0;what? a title\x07",
            "\x1b]11;#123456\x1b\\",
            "\x1b]8;;http://localhost/?\x1b\\link\x1b]8;;\x1b\\",
            "\x1bPq#0~-\x1b\\",
            "\x1b[1S",
            "\x1b[\x1b[m",
            "\x1b]0;cut\x1b[31m",
            "\x1b[?25",
            "\x1b[",
            "\x1b",
            "\x1b]11;?",
            "\x1bP$q",
        ] {
            assert_eq!(String::from_utf8_lossy(&without_queries(shown.as_bytes())), shown, "{shown:?}");
        }
    }

    #[test]
    fn long_outputs_take_no_long_time() {
        for part in ["\u{9d}", "\u{90}", "\x1b]", "\x1b_G", "\u{9b}", "\x1b[1;", "\x1b", "\u{9f}\x1b["] {
            let shown = part.repeat(256 * 1024 / part.len());
            let begun = std::time::Instant::now();
            without_queries(shown.as_bytes());
            // Each part against each other would take minutes.
            assert!(begun.elapsed().as_secs() < 5, "{part:?}");
        }
    }

    #[test]
    fn any_bytes_are_taken() {
        // A small generator (Knuth's MMIX) is enough: these bytes are all that have a meaning here.
        let alphabet = b"\x1b\x1b\x1b[]P_Z\\\x07\x05\xc2\x9b\x9c?>;6ncq$pt1G";
        let mut state = 1_u64;
        for _ in 0..20_000 {
            let bytes: Vec<u8> = (0..12)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    alphabet[(state >> 33) as usize % alphabet.len()]
                })
                .collect();
            let kept = without_queries(&bytes);
            assert!(kept.len() <= bytes.len(), "{bytes:?}");
        }
    }
}
