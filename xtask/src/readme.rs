/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! `patches/README.md`: each patch has an entry that names its file, and in it its count as `+12 -3`.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::patch::Lines;

/// What is missing or out of date; `entries` are the patches as `<F>/NNNN-area-subject.patch`.
pub fn problems(text: &str, entries: &BTreeMap<String, Lines>) -> Vec<String> {
    let mut problems = Vec::new();
    for (name, lines) in entries {
        match section(text, name, entries) {
            None => problems.push(format!("no entry for {name}")),
            Some(section) => {
                let found = find_count(&text[section]);
                if found.is_none_or(|(_, count)| count != *lines) {
                    problems.push(format!(
                        "the entry for {name} must have its current count `{lines}` \
                         (`cargo xtask patches refresh` updates one that is there)"
                    ));
                }
            }
        }
    }
    // An entry outlives its patch when the patch is renamed or removed.
    for word in
        text.split(|character: char| character.is_whitespace() || "`()[]<>|,;*".contains(character))
    {
        if word.ends_with(".patch")
            && word.split('/').count() == 2
            && !word.contains("NNNN")
            && !entries.contains_key(word)
        {
            problems.push(format!("names {word}, which does not exist"));
        }
    }
    problems
}

/// The text with the counts brought up to date.
pub fn update(text: &str, entries: &BTreeMap<String, Lines>) -> String {
    let mut text = text.to_owned();
    for (name, lines) in entries {
        if let Some(section) = section(&text, name, entries) {
            let start = section.start;
            if let Some((range, _)) = find_count(&text[section]) {
                text.replace_range(start + range.start..start + range.end, &lines.to_string());
            }
        }
    }
    text
}

/// From the first mention of a patch to the first mention of another one after it.
fn section(text: &str, name: &str, entries: &BTreeMap<String, Lines>) -> Option<Range<usize>> {
    let start = text.find(name)?;
    let rest = start + name.len();
    let end = entries
        .keys()
        .filter(|other| *other != name)
        .filter_map(|other| text[rest..].find(other.as_str()))
        .min()
        .map_or(text.len(), |offset| rest + offset);
    Some(start..end)
}

/// The first `+12 -3`.
fn find_count(text: &str) -> Option<(Range<usize>, Lines)> {
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    text.match_indices('+').find_map(|(at, _)| {
        let added = &text[at + 1..];
        let added = &added[..digits(added)];
        let removed = text[at + 1 + added.len()..].strip_prefix(" -")?;
        let removed = &removed[..digits(removed)];
        let end = at + 1 + added.len() + 2 + removed.len();
        let lines = Lines {
            added: added.parse().ok()?,
            removed: removed.parse().ok()?,
        };
        Some((at..end, lines))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries() -> BTreeMap<String, Lines> {
        let lines = |added, removed| Lines { added, removed };
        BTreeMap::from([
            ("net/0001-net-a.patch".to_owned(), lines(4, 0)),
            ("script/0001-script-a.patch".to_owned(), lines(12, 3)),
        ])
    }

    const README: &str = "\
# Patches
Each is `<crate>/NNNN-area-subject.patch`.
## `script/0001-script-a.patch`
Lines: +12 -3. C++ needs it.
## `net/0001-net-a.patch`
Lines: +4 -0
";

    #[test]
    fn a_complete_readme_has_no_problems() {
        assert_eq!(problems(README, &entries()), Vec::<String>::new());
        assert_eq!(update(README, &entries()), README);
    }

    #[test]
    fn counts_are_held_against_their_own_entry() {
        let swapped = README.replace("+12 -3", "+4 -0");
        let found = problems(&swapped, &entries());
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("script/0001-script-a.patch"), "{found:?}");
        assert_eq!(update(&swapped, &entries()), README);
    }

    #[test]
    fn missing_and_stale_entries_are_named() {
        let renamed = README.replace("net/0001-net-a", "net/0002-net-b");
        let found = problems(&renamed, &entries());
        assert_eq!(
            found,
            [
                "no entry for net/0001-net-a.patch",
                "names net/0002-net-b.patch, which does not exist"
            ]
        );
    }
}
