/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Reading one patch: its message, its kind, and how many lines it changes in which file.

use std::fmt;

use anyhow::{Context, Result, bail, ensure};

/// Why a patch exists. The budget counts only features.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// Connects the token APIs.
    Feature,
    /// Closes a hole in the engine itself, whoever needs it.
    EngineSecurity,
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Feature => "feature",
            Self::EngineSecurity => "engine-security",
        })
    }
}

/// The lines that hunks add and remove.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Lines {
    /// Lines that begin with `+`.
    pub added: usize,
    /// Lines that begin with `-`.
    pub removed: usize,
}

impl Lines {
    /// What the budget counts.
    pub fn changed(self) -> usize {
        self.added + self.removed
    }
}

impl std::ops::AddAssign for Lines {
    fn add_assign(&mut self, other: Self) {
        self.added += other.added;
        self.removed += other.removed;
    }
}

impl fmt::Display for Lines {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "+{} -{}", self.added, self.removed)
    }
}

/// A patch as `git format-patch` writes it: a commit message, then the hunks.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Patch {
    /// The commit message, normalised: no commit hash, no diffstat; ends with `---` and a line feed.
    pub message: String,
    /// From the trailer `Patch-Kind`.
    pub kind: Kind,
    /// Each changed file, relative to the crate, with its count.
    pub files: Vec<(String, Lines)>,
}

impl Patch {
    /// Reads a patch. A patch without hunks is one that is about to be written; [`Patch::lines`] is zero then.
    pub fn parse(text: &str) -> Result<Self> {
        let (message, diff) = match text.find("\ndiff --git ") {
            Some(at) => text.split_at(at + 1),
            None => (text, ""),
        };
        ensure!(
            !message.contains("\n@@ ") && !message.contains("\n+++ "),
            "hunks must follow a `diff --git` line, as `git diff` writes it"
        );
        let message = normalise_message(message);
        ensure!(
            message.lines().any(|line| line.starts_with("Subject: ")),
            "no `Subject:` line"
        );
        let kind = kind_of(&message)?;
        let files = parse_diff(diff)?;
        Ok(Self {
            message,
            kind,
            files,
        })
    }

    /// All lines that it changes.
    pub fn lines(&self) -> Lines {
        let mut sum = Lines::default();
        for (_, lines) in &self.files {
            sum += *lines;
        }
        sum
    }
}

/// Drops what changes from one export to the next: the commit's hash and the diffstat.
fn normalise_message(message: &str) -> String {
    let mut lines = message.lines().collect::<Vec<_>>();
    if lines
        .first()
        .is_some_and(|line| line.starts_with("From ") && line.split_whitespace().count() > 2)
    {
        lines.remove(0);
    }
    if let Some(end) = lines.iter().position(|line| line.trim_end() == "---") {
        lines.truncate(end);
    }
    let body = lines.join("\n");
    format!("{}\n---\n", body.trim())
}

/// The trailer `Patch-Kind` in the last paragraph of the message.
fn kind_of(message: &str) -> Result<Kind> {
    let body = message.trim_end().trim_end_matches("---").trim_end();
    let last = body.rsplit("\n\n").next().unwrap_or_default();
    let mut kinds = last
        .lines()
        .filter_map(|line| line.strip_prefix("Patch-Kind:"));
    let kind = kinds.next().context(
        "no trailer `Patch-Kind: feature` or `Patch-Kind: engine-security` in the message's last paragraph",
    )?;
    ensure!(kinds.next().is_none(), "more than one `Patch-Kind` trailer");
    match kind.trim() {
        "feature" => Ok(Kind::Feature),
        "engine-security" => Ok(Kind::EngineSecurity),
        other => bail!("unknown `Patch-Kind: {other}`: it is `feature` or `engine-security`"),
    }
}

/// Counts the lines of each file in the output of `git diff`.
fn parse_diff(diff: &str) -> Result<Vec<(String, Lines)>> {
    let mut files: Vec<(String, Lines)> = Vec::new();
    let mut lines = diff.lines();
    let mut in_file = false;
    while let Some(line) = lines.next() {
        if line.starts_with("diff --git ") {
            in_file = true;
        } else if line == "-- " {
            // The signature that `git format-patch` adds, with git's version.
            break;
        } else if line.starts_with("new file mode")
            || line.starts_with("rename ")
            || line.starts_with("copy ")
        {
            bail!(
                "`{line}`: patches change existing Servo files; new files belong in components/engine"
            );
        } else if line.starts_with("deleted file mode")
            || line.starts_with("GIT binary patch")
            || line.starts_with("old mode ")
        {
            bail!("`{line}`: only changes of text are supported");
        } else if let Some(path) = line.strip_prefix("+++ ") {
            let path = path.split('\t').next().unwrap_or_default();
            let path = path
                .strip_prefix("b/")
                .with_context(|| format!("`{line}`: paths begin with a/ and b/"))?;
            files.push((path.to_owned(), Lines::default()));
        } else if line.starts_with("--- ") ||
            line.starts_with("index ") ||
            // "No newline at end of file", after a hunk's last line.
            line.starts_with('\\') ||
            line.is_empty()
        {
            ensure!(in_file, "`{line}` before the first `diff --git`");
        } else if let Some(header) = line.strip_prefix("@@ ") {
            let (_, count) = files
                .last_mut()
                .with_context(|| format!("`{line}` before the first `+++`"))?;
            *count += parse_hunk(header, &mut lines)?;
        } else {
            bail!("unexpected line `{line}`");
        }
    }
    Ok(files)
}

/// Consumes one hunk; `header` is its first line after the first `@@ `.
fn parse_hunk<'a>(header: &str, lines: &mut impl Iterator<Item = &'a str>) -> Result<Lines> {
    let malformed = || format!("malformed hunk header `@@ {header}`");
    let mut ranges = header.split(' ');
    let mut range = |sign| -> Option<usize> {
        let range = ranges.next()?.strip_prefix(sign)?;
        match range.split_once(',') {
            Some((_, length)) => length.parse().ok(),
            None => Some(1),
        }
    };
    let mut old = range('-').with_context(malformed)?;
    let mut new = range('+').with_context(malformed)?;
    let mut count = Lines::default();
    while old > 0 || new > 0 {
        let line = lines
            .next()
            .with_context(|| format!("the hunk `@@ {header}` ends early"))?;
        let (takes_old, takes_new) = match line.as_bytes().first() {
            // Some mailers strip the blank that marks an empty context line.
            Some(b' ') | None => (1, 1),
            Some(b'-') => (1, 0),
            Some(b'+') => (0, 1),
            Some(b'\\') => (0, 0),
            Some(_) => bail!("`{line}` in the hunk `@@ {header}`"),
        };
        ensure!(
            old >= takes_old && new >= takes_new,
            "the hunk `@@ {header}` has more lines than it says"
        );
        old -= takes_old;
        new -= takes_new;
        count.removed += usize::from(takes_new == 0 && takes_old == 1);
        count.added += usize::from(takes_old == 0 && takes_new == 1);
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATCH: &str = "\
From 0123456789abcdef0123456789abcdef01234567 Mon Sep 17 00:00:00 2001
From: A Name <name@example.org>
Date: Mon, 1 Jan 2026 00:00:00 +0000
Subject: [PATCH] script: Connect the secure element manager

Why it is needed.

Patch-Kind: feature
---
 dom/mod.rs | 3 ++-
 1 file changed, 2 insertions(+), 1 deletion(-)

diff --git a/dom/mod.rs b/dom/mod.rs
index 1111111..2222222 100644
--- a/dom/mod.rs
+++ b/dom/mod.rs
@@ -1,3 +1,4 @@ mod before
 one
--- a line that only looks like a header
+++ another one
+three
 four
@@ -9 +10 @@
-old
+new
\\ No newline at end of file
-- 
2.47.3
";

    #[test]
    fn counts_hunk_lines_only() {
        let patch = Patch::parse(PATCH).unwrap();
        assert_eq!(patch.kind, Kind::Feature);
        let lines = Lines {
            added: 3,
            removed: 2,
        };
        assert_eq!(patch.files, [("dom/mod.rs".to_owned(), lines)]);
        assert_eq!(patch.lines().changed(), 5);
    }

    #[test]
    fn message_keeps_no_hash_and_no_diffstat() {
        assert_eq!(
            Patch::parse(PATCH).unwrap().message,
            "From: A Name <name@example.org>\n\
             Date: Mon, 1 Jan 2026 00:00:00 +0000\n\
             Subject: [PATCH] script: Connect the secure element manager\n\
             \n\
             Why it is needed.\n\
             \n\
             Patch-Kind: feature\n\
             ---\n"
        );
    }

    #[test]
    fn message_is_stable() {
        let message = Patch::parse(PATCH).unwrap().message;
        assert_eq!(Patch::parse(&message).unwrap().message, message);
    }

    #[test]
    fn kind_must_be_named_once_and_known() {
        for (trailer, wanted) in [
            ("", "no trailer"),
            ("Patch-Kind: nice", "unknown"),
            ("Patch-Kind: feature\nPatch-Kind: feature", "more than one"),
        ] {
            let text = PATCH.replace("Patch-Kind: feature", trailer);
            let error = Patch::parse(&text).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
        let text = PATCH.replace("Patch-Kind: feature", "Patch-Kind: engine-security");
        assert_eq!(Patch::parse(&text).unwrap().kind, Kind::EngineSecurity);
    }

    #[test]
    fn kind_elsewhere_in_the_message_does_not_count() {
        let text = PATCH.replace(
            "Why it is needed.\n\nPatch-Kind: feature",
            "Patch-Kind: feature\n\nWhy it is needed.",
        );
        assert!(Patch::parse(&text).is_err());
    }

    #[test]
    fn new_files_are_refused() {
        let text = PATCH.replace("index 1111111..2222222 100644", "new file mode 100644");
        let error = Patch::parse(&text).unwrap_err().to_string();
        assert!(error.contains("components/engine"), "{error}");
    }

    #[test]
    fn a_hunk_that_lies_is_refused() {
        for (from, to) in [("-1,3 +1,4", "-1,3 +1,40"), ("-1,3 +1,4", "-1,2 +1,3")] {
            assert!(Patch::parse(&PATCH.replace(from, to)).is_err());
        }
    }

    #[test]
    fn a_message_alone_is_a_patch_about_to_be_written() {
        let patch = Patch::parse("Subject: script: Begin\n\nPatch-Kind: feature\n").unwrap();
        assert_eq!(patch.lines(), Lines::default());
        assert_eq!(
            patch.message,
            "Subject: script: Begin\n\nPatch-Kind: feature\n---\n"
        );
    }
}
