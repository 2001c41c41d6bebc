//! Writes scripts to files, and finds their interpreter. As arguments they would be visible to everyone, limited in
//! size, and matched by `pkill -f`.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Letters of file names, chosen so that they contain no word and no port number that an agent may search process
/// arguments for.
const LETTERS: &[u8] = b"BCDFGHJKLMNPQRSTVW";
/// Shells in order of preference.
const SHELLS: [&str; 6] = ["/bin/bash", "/usr/bin/bash", "/bin/sh", "/usr/bin/sh", "/bin/busybox", "/bin/dash"];

/// A directory for script files that only we can write to.
pub struct Scripts {
    directory: PathBuf,
    /// How many scripts have been written.
    written: u64,
}

/// A script's file; removed on drop.
pub struct Script(PathBuf);

impl Scripts {
    /// Uses `directory`, which is created with the first script.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory, written: 0 }
    }

    /// Writes a script under a name that is never used again.
    pub fn write(&mut self, text: &str) -> io::Result<Script> {
        // Agents may open files in it, but not list them.
        match DirBuilder::new().mode(0o711).create(&self.directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let path = self.directory.join(name(self.written));
        self.written += 1;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o444).open(&path)?;
        let script = Script(path);
        file.write_all(text.as_bytes())?;
        Ok(script)
    }
}

impl Script {
    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        // The directory is removed with the container, so a failure leaves nothing behind.
        let _ = fs::remove_file(&self.0);
    }
}

/// Encodes a number as a short name.
fn name(mut number: u64) -> String {
    let count = LETTERS.len() as u64;
    let mut name = String::new();
    loop {
        name.push(char::from(LETTERS[usize::try_from(number % count).unwrap_or(0)]));
        match number / count {
            0 => return name,
            rest => number = rest - 1,
        }
    }
}

/// The command that runs a script, without the script's path.
pub fn interpreter(text: &str) -> io::Result<Vec<String>> {
    match parse_shebang(text) {
        Some(words) => Ok(words),
        None => shell(),
    }
}

/// The container's shell, with the arguments that it needs.
pub fn shell() -> io::Result<Vec<String>> {
    let none = || io::Error::new(io::ErrorKind::NotFound, "there is no shell in this container");
    let shell = SHELLS.iter().find(|path| Path::new(path).exists()).ok_or_else(none)?;
    let applet = shell.ends_with("busybox").then(|| "sh".to_owned());
    Ok(std::iter::once((*shell).to_owned()).chain(applet).collect())
}

/// Parses the first line `#!…` as the kernel does (execve(2)): a path, and the rest of the line as one argument. A
/// carriage return at the end is ignored.
fn parse_shebang(text: &str) -> Option<Vec<String>> {
    let line = text.strip_prefix("#!")?.lines().next()?;
    let blank = |c| c == ' ' || c == '\t';
    let line = line.trim_end_matches('\r').trim_matches(blank);
    let (path, rest) = line.split_once(blank).unwrap_or((line, ""));
    let argument = Some(rest.trim_matches(blank)).filter(|argument| !argument.is_empty());
    // Without a slash it is a path in the working directory, not in PATH.
    let path = if path.contains('/') { path.to_owned() } else { format!("./{path}") };
    (path != "./").then(|| std::iter::once(path).chain(argument.map(str::to_owned)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_differ_and_are_short() {
        let names: Vec<String> = (0..400).map(name).collect();
        assert_eq!([&names[0], &names[17], &names[18], &names[36]], ["B", "W", "BB", "BC"]);
        let mut distinct = names.clone();
        distinct.sort();
        distinct.dedup();
        assert_eq!(distinct.len(), names.len());
        assert!(names.iter().all(|name| name.len() <= 3));
        assert_eq!(name(u64::MAX).len(), 16);
    }

    #[test]
    fn first_lines_are_read_as_the_kernel_does() {
        for (text, words) in [
            ("#!/bin/sh\necho", Some(vec!["/bin/sh"])),
            ("#!/bin/sh", Some(vec!["/bin/sh"])),
            ("#! \t/usr/bin/env  python3 -u \necho", Some(vec!["/usr/bin/env", "python3 -u"])),
            ("#!/usr/bin/python3\r\nprint(1)\r\n", Some(vec!["/usr/bin/python3"])),
            ("#!sh -e\n", Some(vec!["./sh", "-e"])),
            ("#!\n/bin/sh", None),
            ("#! \r\n", None),
            ("#!", None),
            ("", None),
            ("# !/bin/sh", None),
            (" #!/bin/sh", None),
            ("\n#!/bin/sh", None),
        ] {
            let words: Option<Vec<String>> = words.map(|words| words.into_iter().map(str::to_owned).collect());
            assert_eq!(parse_shebang(text), words, "{text:?}");
        }
    }
}
