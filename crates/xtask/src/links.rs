//! Checks that every local link in a Markdown file has a target.

use std::path::{Component, Path, PathBuf};

use crate::Findings;
use crate::repository::Repository;

/// Checks all links.
pub fn resolve(repository: &Repository) -> anyhow::Result<Findings> {
    let mut faults = Vec::new();
    for path in repository.with_extension("md") {
        let text = repository.read(path)?;
        for target in targets(&prose(&text)) {
            if let Some(fault) = fault(repository, path, target)? {
                faults.push(format!("{}: {target}: {fault}", path.display()));
            }
        }
    }
    Ok(faults)
}

fn fault(repository: &Repository, from: &Path, target: &str) -> anyhow::Result<Option<String>> {
    if target.contains("://") || target.starts_with("mailto:") {
        return Ok(None);
    }
    let (file, heading) = target.split_once('#').map_or((target, None), |(file, heading)| (file, Some(heading)));
    let path = if file.is_empty() { from.to_path_buf() } else { joined(from.parent().unwrap_or(from), file) };
    if !repository.root.join(&path).exists() {
        return Ok(Some("there is no such file".into()));
    }
    let Some(heading) = heading else { return Ok(None) };
    let found = anchors(&repository.read(&path)?).iter().any(|anchor| anchor == heading);
    Ok((!found).then(|| "there is no such heading".into()))
}

fn joined(directory: &Path, file: &str) -> PathBuf {
    let mut path = directory.to_path_buf();
    for part in Path::new(file).components() {
        match part {
            Component::ParentDir => drop(path.pop()),
            Component::CurDir => {}
            other => path.push(other),
        }
    }
    path
}

/// The text without code.
fn prose(text: &str) -> String {
    let mut in_code = false;
    let mut kept = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        } else if !in_code {
            kept.extend(line.split('`').step_by(2));
            kept.push('\n');
        }
    }
    kept
}

/// The targets of `[…](target)`.
fn targets(text: &str) -> impl Iterator<Item = &str> {
    text.split("](").skip(1).filter_map(|rest| rest.split(')').next()).map(str::trim)
}

/// Anchors of headings: lower case, words joined by dashes, otherwise only letters, digits and `_`.
fn anchors(text: &str) -> Vec<String> {
    let headings = text
        .lines()
        .filter_map(|line| line.trim_start_matches('#').strip_prefix(' ').filter(|_| line.starts_with('#')));
    let anchor = |heading: &str| {
        let kept = heading.to_lowercase().replace(' ', "-");
        kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
    };
    headings.map(anchor).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_in_prose_are_found_and_code_is_left_alone() {
        let text = "a [b](c.md) `[d](e)` [f](../g.md#h-1)\n```\n[i](j)\n```\n[`k`](l)";
        assert_eq!(targets(&prose(text)).collect::<Vec<_>>(), ["c.md", "../g.md#h-1", "l"]);
    }

    #[test]
    fn headings_become_anchors() {
        assert_eq!(anchors("# A `b`, c\n#not\n## Two-part 3_x\n"), ["a-b-c", "two-part-3_x"]);
    }

    #[test]
    fn paths_are_joined() {
        assert_eq!(joined(Path::new("docs/errors"), "../api.md"), Path::new("docs/api.md"));
        assert_eq!(joined(Path::new(""), "./docs"), Path::new("docs"));
    }
}
