//! Scripts on their way to a shell, or to what their first line names: as files, which is what a shell knows best. Not as
//! arguments, which everyone sees, which are limited, and which `pkill -f` finds.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Letters of the files' names: what agents look for among the arguments of processes is hardly made of these, and neither
/// the number of a port nor a word.
const LETTERS: &[u8] = b"BCDFGHJKLMNPQRSTVW";
/// Shells, the preferred one first.
const SHELLS: [&str; 6] = ["/bin/bash", "/usr/bin/bash", "/bin/sh", "/usr/bin/sh", "/bin/busybox", "/bin/dash"];

/// Where scripts lie: a directory that only we write to.
pub struct Scripts {
    directory: PathBuf,
    /// How many there were.
    written: u64,
}

/// The file of a script; removed when it is dropped.
pub struct Script(PathBuf);

impl Scripts {
    /// In this directory, which is made when it is first needed.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory, written: 0 }
    }

    /// Writes one, under a name that no other one had or will have.
    pub fn write(&mut self, text: &str) -> io::Result<Script> {
        // Agents enter it, but need no list of what is there.
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
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        // In a directory that ends with the container: nothing is lost where it stays.
        let _ = fs::remove_file(&self.0);
    }
}

/// The shortest name of this number.
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

/// The words that run a script's file, without the file itself.
pub fn interpreter(text: &str) -> io::Result<Vec<String>> {
    match named(text) {
        Some(words) => Ok(words),
        None => shell(),
    }
}

/// The shell of this container, with what it needs to be one.
pub fn shell() -> io::Result<Vec<String>> {
    let none = || io::Error::new(io::ErrorKind::NotFound, "there is no shell in this container");
    let shell = SHELLS.iter().find(|path| Path::new(path).exists()).ok_or_else(none)?;
    let applet = shell.ends_with("busybox").then(|| "sh".to_owned());
    Ok(std::iter::once((*shell).to_owned()).chain(applet).collect())
}

/// What the first line names, read as the kernel does (execve(2)): a path, and the rest of the line as one argument. A
/// carriage return at its end is none of it.
fn named(text: &str) -> Option<Vec<String>> {
    let line = text.strip_prefix("#!")?.lines().next()?;
    let blank = |c| c == ' ' || c == '\t';
    let line = line.trim_end_matches('\r').trim_matches(blank);
    let (path, rest) = line.split_once(blank).unwrap_or((line, ""));
    let argument = Some(rest.trim_matches(blank)).filter(|argument| !argument.is_empty());
    // Without a slash it is a file here, not one of PATH.
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
            assert_eq!(named(text), words, "{text:?}");
        }
    }
}
