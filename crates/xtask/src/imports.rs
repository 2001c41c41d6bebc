//! Which file of a crate imports which, and that no cycle of imports leads through several folders.
//!
//! A *file* imports another where a path in it (of a `use` or anywhere else, also in the arguments of a macro) leads there. Such a path
//! begins with `crate`, `self`, `super`, the name of a module inside or one that a `use` gives; it leads to the file of the innermost
//! module that it names, and where that only re-exports what is meant, to where that is. No imports are the declaration `mod x;`, a
//! re-export of what the file itself does not use, and what stands in comments, texts and `#[cfg(test)]`.
//!
//! The *folder* of a file is the directory that it lies in, below `src`. A file whose modules lie in a directory of its own (`x/mod.rs`, or
//! `x.rs` beside `x/`) is of that directory: with them it is one folder.
//!
//! A cycle inside of one folder is a matter of those who know the folder. One through several means that none of them can be read, or
//! changed, without the others.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use proc_macro2::{Delimiter, TokenStream, TokenTree};

use crate::Findings;
use crate::repository::Repository;
use crate::text::is_test;

/// Names that are followed from one `use` to another, at most.
const FOLLOWED_MAX: usize = 16;

/// A module, or what is in one, by its names from the crate's root on.
type Module = Vec<String>;

/// No cycle of imports leads through several folders of a crate.
pub fn cycles(repository: &Repository) -> anyhow::Result<Findings> {
    let mut faults = Vec::new();
    for manifest in repository.files.iter().filter(|path| path.ends_with("Cargo.toml")) {
        let Some(src) = manifest.parent().map(|package| package.join("src")) else { continue };
        let mut files = BTreeMap::new();
        for path in repository.with_extension("rs").filter(|path| path.starts_with(&src) && !is_test(path)) {
            files.insert(path.strip_prefix(&src)?.to_path_buf(), repository.read(path)?);
        }
        let found = Crate::read(&files).with_context(|| src.display().to_string())?.cycles();
        faults.extend(found.into_iter().map(|cycle| fault(&src, &cycle)));
    }
    Ok(faults)
}

fn fault(src: &Path, cycle: &[PathBuf]) -> String {
    let names: Vec<String> = cycle.iter().chain(cycle.first()).map(|path| path.display().to_string()).collect();
    format!(
        "{}: {}: files of different folders import each other in a cycle. Move what an earlier one takes from a later one into a file \
         that imports neither, or hand it over as an argument",
        src.display(),
        names.join(" → ")
    )
}

/// The files of a crate, and which of them each imports.
struct Crate {
    imports: BTreeMap<PathBuf, BTreeSet<PathBuf>>,
}

impl Crate {
    /// Reads the files of a crate; their paths are relative to `src`.
    fn read(files: &BTreeMap<PathBuf, String>) -> anyhow::Result<Self> {
        // Of a program with a library, `main.rs` is a crate of its own, as each of `bin` is.
        let root = if files.contains_key(Path::new("lib.rs")) { "lib.rs" } else { "main.rs" };
        let modules: BTreeMap<Module, &PathBuf> =
            files.keys().filter_map(|path| Some((module_of(path, root)?, path))).collect();
        let mut named = BTreeMap::new();
        for (module, path) in &modules {
            let tokens = files[*path].parse::<TokenStream>();
            let tokens = tokens.map_err(|error| anyhow::anyhow!("{}: no Rust: {error}", path.display()))?;
            let mut names = Names::default();
            let (mut words, mut shown) = (BTreeSet::new(), Vec::new());
            paths(tokens, module, &mut |found| match found {
                Found::Word(word) => {
                    words.insert(word);
                }
                Found::Path(target) | Found::Use { target, name: None, .. } => names.paths.push(target),
                Found::Use { target, name: Some(name), is_public } => {
                    names.bound.insert(module.iter().cloned().chain([name.clone()]).collect(), target.clone());
                    if is_public { shown.push((name, target)) } else { names.paths.push(target) }
                }
            });
            names.paths.extend(shown.into_iter().filter(|(name, _)| words.contains(name)).map(|(_, target)| target));
            named.insert(*path, names);
        }
        let leads_to = |target: &Module| -> Option<PathBuf> { resolve(target, &modules, &named, 0).cloned() };
        let imports = named.iter().map(|(path, names)| {
            let targets = names.paths.iter().filter_map(leads_to).filter(|target| target != *path);
            ((*path).clone(), targets.collect())
        });
        Ok(Self { imports: imports.collect() })
    }

    /// A cycle through several folders for each set of files of several folders that all lead to one another: a shortest one.
    fn cycles(&self) -> Vec<Vec<PathBuf>> {
        let mut cycles: Vec<Vec<PathBuf>> = Vec::new();
        let mut seen = BTreeSet::new();
        let across = self.imports.iter().flat_map(|(from, to)| to.iter().map(move |to| (from, to)));
        let mut found: Vec<Vec<PathBuf>> = across
            .filter(|(from, to)| self.folder(from) != self.folder(to))
            .filter_map(|(from, to)| self.ring(to, from))
            .collect();
        found.sort_by_key(Vec::len);
        for cycle in found {
            // Others through the same files are looked at when this one is gone.
            if cycle.iter().all(|path| !seen.contains(path)) {
                seen.extend(cycle.iter().cloned());
                cycles.push(cycle);
            }
        }
        cycles
    }

    /// The shortest way along imports, with both ends; as a ring, it begins anywhere.
    fn ring(&self, from: &Path, to: &Path) -> Option<Vec<PathBuf>> {
        let (mut came, mut next) = (BTreeMap::new(), VecDeque::from([from]));
        while let Some(at) = next.pop_front() {
            if at == to {
                let mut way = vec![to.to_path_buf()];
                let mut last = to;
                while last != from {
                    last = came[last];
                    way.push(last.to_path_buf());
                }
                way.reverse();
                let least = way.iter().enumerate().min_by_key(|(_, path)| *path).map_or(0, |(at, _)| at);
                way.rotate_left(least);
                return Some(way);
            }
            for other in &self.imports[at] {
                if other != from && !came.contains_key(other.as_path()) {
                    came.insert(other.as_path(), at);
                    next.push_back(other);
                }
            }
        }
        None
    }

    /// The folder of a file.
    fn folder(&self, path: &Path) -> PathBuf {
        let own = path.with_extension("");
        let has_own = self.imports.keys().any(|other| other.starts_with(&own));
        if has_own { own } else { path.parent().unwrap_or(Path::new("")).to_path_buf() }
    }
}

/// The module that a file is, in the crate with this root.
fn module_of(path: &Path, root: &str) -> Option<Module> {
    if path == Path::new(root) {
        return Some(Vec::new());
    }
    if path.starts_with("bin") || path == Path::new("main.rs") {
        return None;
    }
    let module = if path.ends_with("mod.rs") { path.parent()?.to_path_buf() } else { path.with_extension("") };
    Some(module.iter().map(|name| name.to_string_lossy().into_owned()).collect())
}

/// The paths that stand in a file, from the root of the crate on.
#[derive(Default)]
struct Names {
    paths: Vec<Module>,
    /// What a `use` gives a name to in the file's own module, by that name.
    bound: BTreeMap<Module, Module>,
}

/// The file that a path leads to: that of the innermost module which it names, or what is imported there by the next name, followed
/// to where it is.
fn resolve<'f>(
    path: &[String],
    modules: &BTreeMap<Module, &'f PathBuf>,
    named: &BTreeMap<&PathBuf, Names>,
    followed: usize,
) -> Option<&'f PathBuf> {
    let mut length = path.len();
    let file = loop {
        match modules.get(&path[..length]) {
            Some(file) => break *file,
            None => length = length.checked_sub(1)?,
        }
    };
    let bound = path.get(..=length).and_then(|name| named.get(file)?.bound.get(name));
    match bound.filter(|_| followed < FOLLOWED_MAX) {
        Some(target) => {
            let further: Module = target.iter().chain(&path[length + 1..]).cloned().collect();
            resolve(&further, modules, named, followed + 1)
        }
        None => Some(file),
    }
}

/// What is found in a file.
enum Found {
    /// A name that a path begins with, outside of any `use`.
    Word(String),
    /// A path, from the root on. What leads out of the crate looks like something inside of the module that is not there.
    Path(Module),
    /// A path of a `use` of the file's own module, and what it is called from then on, if it is no `*`.
    Use { target: Module, name: Option<String>, is_public: bool },
}

/// Tells all that is found in `tokens`, which are of the module `at`.
fn paths(tokens: TokenStream, at: &[String], tell: &mut dyn FnMut(Found)) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut next = 0;
    while next < tokens.len() {
        let rest = &tokens[next..];
        match rest {
            // What is for tests only, up to its end.
            [TokenTree::Punct(mark), TokenTree::Group(attribute), ..]
                if mark.as_char() == '#' && is_for_tests(attribute) =>
            {
                let end = rest.iter().skip(2).position(ends_item);
                next += end.map_or(rest.len(), |end| end + 3);
                continue;
            }
            [TokenTree::Ident(word), TokenTree::Ident(name), TokenTree::Group(inside), ..] if word == "mod" => {
                let inner: Module = at.iter().cloned().chain([name.to_string()]).collect();
                paths(inside.stream(), &inner, &mut |found| tell(without_name(found)));
                next += 3;
                continue;
            }
            [TokenTree::Ident(word), after, ..] if word == "use" && !is(after, '<') => {
                let end = rest.iter().position(|token| is(token, ';')).unwrap_or(rest.len());
                let is_public = matches!(&tokens[..next],
                    [.., TokenTree::Ident(word)] | [.., TokenTree::Ident(word), TokenTree::Group(_)] if word == "pub");
                tree(&rest[1..end], &[], &mut |path, name| {
                    tell(Found::Use { target: absolute(path, at), name, is_public });
                });
                next += end;
                continue;
            }
            [TokenTree::Ident(_), ..] => {
                let path = plain_path(rest);
                let length = path.len();
                tell(Found::Word(path[0].clone()));
                if length > 1 {
                    tell(Found::Path(absolute(&path, at)));
                }
                // A name, and two colons and a name for each further one.
                next += length * 3 - 2;
                continue;
            }
            [TokenTree::Group(group), ..] => paths(group.stream(), at, &mut |found| tell(without_name(found))),
            _ => {}
        }
        next += 1;
    }
}

/// The same inside of a function, or of a module in the file: what is named there is not named outside.
fn without_name(found: Found) -> Found {
    match found {
        Found::Use { target, .. } => Found::Path(target),
        other => other,
    }
}

/// The path from the root on, as it is written in the module `at`.
fn absolute(path: &[String], at: &[String]) -> Module {
    let mut whole = if path.first().is_some_and(|first| first == "crate") { Vec::new() } else { at.to_vec() };
    for name in path {
        match name.as_str() {
            "crate" | "self" => {}
            "super" => drop(whole.pop()),
            name => whole.push(name.to_owned()),
        }
    }
    whole
}

/// Tells all paths of a tree of a `use`, and what each is called from then on.
fn tree(tokens: &[TokenTree], before: &[String], named: &mut impl FnMut(&[String], Option<String>)) {
    match tokens {
        [TokenTree::Group(group)] if group.delimiter() == Delimiter::Brace => {
            let inside: Vec<TokenTree> = group.stream().into_iter().collect();
            inside.split(|token| is(token, ',')).filter(|one| !one.is_empty()).for_each(|one| tree(one, before, named));
        }
        [TokenTree::Ident(name), rest @ ..] => {
            let path: Vec<String> = before.iter().cloned().chain([name.to_string()]).collect();
            match rest {
                [colon, second, rest @ ..] if is(colon, ':') && is(second, ':') => tree(rest, &path, named),
                [TokenTree::Ident(_), TokenTree::Ident(other)] => named(&path, Some(other.to_string())),
                _ => named(&path, path.iter().rfind(|name| *name != "self").cloned()),
            }
        }
        // `*`; or a path that leads out of the crate.
        _ if before.is_empty() => {}
        _ => named(before, None),
    }
}

/// The path of names that begins here.
fn plain_path(tokens: &[TokenTree]) -> Vec<String> {
    let mut path = Vec::new();
    let mut rest = tokens;
    while let [TokenTree::Ident(name), after @ ..] = rest {
        path.push(name.to_string());
        rest = match after {
            [colon, second, rest @ ..] if is(colon, ':') && is(second, ':') => rest,
            _ => break,
        };
    }
    path
}

fn is(token: &TokenTree, mark: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == mark)
}

/// `;`, or a body.
fn ends_item(token: &TokenTree) -> bool {
    is(token, ';') || matches!(token, TokenTree::Group(group) if group.delimiter() == Delimiter::Brace)
}

fn is_for_tests(attribute: &proc_macro2::Group) -> bool {
    let words: Vec<String> = attribute.stream().into_iter().map(|token| token.to_string()).collect();
    matches!(words.as_slice(), [cfg, what] if cfg == "cfg" && what == "(test)")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let files = files.iter().map(|(path, text)| (PathBuf::from(path), (*text).to_owned())).collect();
        let cycles = Crate::read(&files).unwrap().cycles();
        cycles
            .iter()
            .map(|cycle| cycle.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" "))
            .collect()
    }

    #[test]
    fn a_cycle_between_folders_is_named() {
        let direct = [
            ("lib.rs", "mod app; mod loops;"),
            ("app.rs", "use crate::loops::quotas::Quotas;"),
            ("loops/mod.rs", "pub mod quotas;"),
            ("loops/quotas.rs", "use crate::{error::Failure, app::{App, Shared}};"),
        ];
        assert_eq!(found(&direct), ["app.rs loops/quotas.rs"]);
        let fault = fault(Path::new("crates/x/src"), &[PathBuf::from("a.rs"), PathBuf::from("b/c.rs")]);
        assert!(fault.starts_with("crates/x/src: a.rs → b/c.rs → a.rs: "), "{fault}");
    }

    #[test]
    fn however_it_is_written_it_is_found() {
        let to_app = [
            "use crate::app::App;",
            "use super::super::app::App;",
            "use super::super::app;",
            "pub use crate::app::*;",
            "fn f() { crate::app::go() }",
            "fn f() { log!(\"x\", y = crate::app::Y) }",
            "mod inner { use super::super::super::app; }",
            "use crate::other::{self, app2 as _, deep::{A, C}}; struct S(Vec<crate::app::App>);",
            "#[cfg(test)] mod tests { fn f() {} } use crate::app::App;",
            "#[cfg(unix)] use crate::app::App;",
        ];
        for text in to_app {
            let files = [("lib.rs", ""), ("app.rs", "use crate::a::b::B;"), ("a/mod.rs", ""), ("a/b.rs", text)];
            assert_eq!(found(&files), ["a/b.rs app.rs"], "{text}");
        }
    }

    #[test]
    fn a_re_export_hides_none() {
        let files = [
            ("lib.rs", ""),
            ("app.rs", "use crate::images::Images;"),
            ("images.rs", "mod pack; pub use pack::Images;"),
            ("images/pack.rs", "use crate::app::App;"),
        ];
        assert_eq!(found(&files), ["app.rs images/pack.rs"]);
        let face = [
            ("lib.rs", "mod a; mod error; pub use a::b::B; pub use error::Error;"),
            ("error.rs", ""),
            ("a/b.rs", "use crate::Error;"),
        ];
        assert_eq!(found(&face), Vec::<String>::new(), "what is only shown is not leant on");
        let used = [
            ("lib.rs", "mod a; pub use a::b::B; pub struct Error(B);"),
            ("a/mod.rs", ""),
            ("a/b.rs", "use crate::Error;"),
        ];
        assert_eq!(found(&used), ["a/b.rs lib.rs"]);
        let bound = [
            ("lib.rs", ""),
            ("app.rs", "use crate::images as other; fn f() { other::pack::go() }"),
            ("images/mod.rs", "pub mod pack;"),
            ("images/pack.rs", "use crate::app::App;"),
        ];
        assert_eq!(found(&bound), ["app.rs images/pack.rs"]);
    }

    #[test]
    fn a_long_one_is_found_and_each_set_of_files_is_told_once() {
        let files = [
            ("main.rs", "mod a; mod b; mod c; mod d;"),
            ("a/x.rs", "use crate::b::y;"),
            ("b/y.rs", "use crate::c::z; use super::w;"),
            ("b/w.rs", ""),
            ("c/z.rs", "use crate::a::x;"),
            ("d.rs", "use crate::c::z;"),
        ];
        assert_eq!(found(&files), ["a/x.rs b/y.rs c/z.rs"]);
    }

    #[test]
    fn what_is_no_cycle_between_folders_is_left_alone() {
        let inside = [("lib.rs", ""), ("a/b.rs", "use super::c::C;"), ("a/c.rs", "use super::b::B;")];
        let parent = [("lib.rs", ""), ("a.rs", "mod b; use b::B;"), ("a/b.rs", "use super::A;")];
        let parent_mod = [("lib.rs", ""), ("a/mod.rs", "mod b; pub use b::B;"), ("a/b.rs", "use super::A;")];
        let declared = [("lib.rs", "mod a;"), ("a/mod.rs", "mod b;"), ("a/b.rs", "use crate::Top;")];
        let one_way =
            [("lib.rs", "mod a; use a::b::B;"), ("app.rs", "use crate::a::b::B;"), ("a/b.rs", "use other::app::App;")];
        let no_code = [
            ("lib.rs", ""),
            ("app.rs", "use crate::a::b::B;"),
            (
                "a/b.rs",
                "//! [`crate::app`]\nconst A: &str = \"crate::app::App\"; /* crate::app */ pub(crate) fn f() {}",
            ),
        ];
        let tests = [
            ("lib.rs", ""),
            ("app.rs", "use crate::a::b::B;"),
            ("a/b.rs", "#[cfg(test)] use crate::app::A; #[cfg(test)] mod tests { use crate::app::App; }"),
        ];
        let programs = [
            ("lib.rs", "mod a;"),
            ("main.rs", "use crate::a::b;"),
            ("bin/x.rs", "use crate::a::b;"),
            ("a/b.rs", "use crate::main;"),
        ];
        for files in [&inside[..], &parent, &parent_mod, &declared, &one_way, &no_code, &tests, &programs] {
            assert_eq!(found(files), Vec::<String>::new(), "{files:?}");
        }
    }
}
