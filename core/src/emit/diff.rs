//! Unified diffs, as `diff -u` writes them.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

/// Unchanged lines around a change.
const CONTEXT: usize = 3;
/// Most comparisons that a shortest diff may cost. Beyond, what differs is replaced as one piece.
const MOST: usize = 4_000_000;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Edit {
    Keep,
    Remove,
    Add,
}

/// The diff of a file: `old` is `None` when it is new, `new` when it goes. Empty when nothing changes.
pub fn unified(path: &str, old: Option<&str>, new: Option<&str>) -> String {
    let name = |side: char, text: Option<&str>| match text {
        Some(_) => format!("{side}{path}"),
        None => String::from("/dev/null"),
    };
    let lines = |text: Option<&str>| -> Vec<String> {
        let lines = text.unwrap_or_default().split_inclusive('\n');
        lines.map(String::from).collect()
    };
    let (before, after) = (lines(old), lines(new));
    let edits = edits(&before, &after);
    if edits.iter().all(|edit| *edit == Edit::Keep) && old.is_some() == new.is_some() {
        return String::new();
    }
    let mut diff = format!("--- {}\n+++ {}\n", name('a', old), name('b', new));
    // Positions in the list of edits that are shown: changes and their surroundings.
    let shown = |at: usize| {
        let from = at.saturating_sub(CONTEXT);
        let to = (at + CONTEXT + 1).min(edits.len());
        edits[from..to].iter().any(|edit| *edit != Edit::Keep)
    };
    let (mut at, mut old_line, mut new_line) = (0, 0, 0);
    while at < edits.len() {
        if !shown(at) {
            // Only kept lines are not shown.
            (at, old_line, new_line) = (at + 1, old_line + 1, new_line + 1);
            continue;
        }
        let (old_start, new_start) = (old_line, new_line);
        let mut body = String::new();
        while at < edits.len() && shown(at) {
            let (sign, line) = match edits[at] {
                Edit::Keep => (' ', &before[old_line]),
                Edit::Remove => ('-', &before[old_line]),
                Edit::Add => ('+', &after[new_line]),
            };
            old_line += usize::from(edits[at] != Edit::Add);
            new_line += usize::from(edits[at] != Edit::Remove);
            body.push(sign);
            body.push_str(line);
            if !line.ends_with('\n') {
                body.push_str("\n\\ No newline at end of file\n");
            }
            at += 1;
        }
        let range = |start: usize, end: usize| match end - start {
            0 => format!("{start},0"),
            1 => format!("{}", start + 1),
            count => format!("{},{count}", start + 1),
        };
        let (old_range, new_range) = (range(old_start, old_line), range(new_start, new_line));
        let header = format!("@@ -{old_range} +{new_range} @@\n");
        diff.push_str(&header);
        diff.push_str(&body);
    }
    diff
}

fn edits(before: &[String], after: &[String]) -> Vec<Edit> {
    let same = |pair: &(&String, &String)| pair.0 == pair.1;
    let prefix = before.iter().zip(after).take_while(same).count();
    let (old, new) = (&before[prefix..], &after[prefix..]);
    let suffix = old
        .iter()
        .rev()
        .zip(new.iter().rev())
        .take_while(same)
        .count();
    let (old, new) = (&old[..old.len() - suffix], &new[..new.len() - suffix]);
    let mut edits = vec![Edit::Keep; prefix];
    let width = new.len() + 1;
    if (old.len() + 1).saturating_mul(width) > MOST {
        edits.extend(old.iter().map(|_| Edit::Remove));
        edits.extend(new.iter().map(|_| Edit::Add));
    } else {
        // The length of the longest common part from each pair of places on.
        let mut common = vec![0_u32; (old.len() + 1) * width];
        for (i, left) in old.iter().enumerate().rev() {
            for (j, right) in new.iter().enumerate().rev() {
                common[i * width + j] = if left == right {
                    common[(i + 1) * width + j + 1] + 1
                } else {
                    common[(i + 1) * width + j].max(common[i * width + j + 1])
                };
            }
        }
        let (mut i, mut j) = (0, 0);
        while i < old.len() || j < new.len() {
            if i < old.len() && j < new.len() && old[i] == new[j] {
                edits.push(Edit::Keep);
                (i, j) = (i + 1, j + 1);
            } else if i < old.len()
                && (j == new.len() || common[(i + 1) * width + j] >= common[i * width + j + 1])
            {
                edits.push(Edit::Remove);
                i += 1;
            } else {
                edits.push(Edit::Add);
                j += 1;
            }
        }
    }
    edits.extend(vec![Edit::Keep; suffix]);
    edits
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn changes_are_shown_with_their_surroundings() {
        let old = "1\n2\n3\n4\n5\n6\n7\n8\n9\n";
        let new = "1\n2\n3\n4\nfive\n6\n7\n8\n9\n";
        assert_eq!(
            unified("/f", Some(old), Some(new)),
            "--- a/f\n+++ b/f\n@@ -2,7 +2,7 @@\n 2\n 3\n 4\n-5\n+five\n 6\n 7\n 8\n"
        );
        assert_eq!(unified("/f", Some(old), Some(old)), "");
        assert_eq!(
            unified("/f", None, Some("a\nb")),
            "--- /dev/null\n+++ b/f\n@@ -0,0 +1,2 @@\n+a\n+b\n\\ No newline at end of file\n"
        );
        assert_eq!(
            unified("/f", Some("a\n"), None),
            "--- a/f\n+++ /dev/null\n@@ -1 +0,0 @@\n-a\n"
        );
    }

    /// What `patch` makes of a diff.
    fn patched(old: &str, diff: &str) -> String {
        let old: Vec<&str> = old.split_inclusive('\n').collect();
        let (mut result, mut at) = (String::new(), 0);
        let mut lines = diff.split_inclusive('\n').peekable();
        while let Some(line) = lines.next() {
            if let Some(hunk) = line.strip_prefix("@@ -") {
                let range = hunk.split(' ').next().unwrap();
                let (start, count) = range.split_once(',').unwrap_or((range, "1"));
                let start: usize = start.parse().unwrap();
                let start = if count == "0" { start } else { start - 1 };
                while at < start {
                    result.push_str(old[at]);
                    at += 1;
                }
            } else if !line.starts_with("---")
                && !line.starts_with("+++")
                && !line.starts_with('\\')
            {
                let bare = lines.peek().is_some_and(|next| next.starts_with('\\'));
                let content = if bare {
                    line[1..].trim_end_matches('\n')
                } else {
                    &line[1..]
                };
                match &line[..1] {
                    "+" => result.push_str(content),
                    "-" => at += 1,
                    _ => {
                        result.push_str(content);
                        at += 1;
                    }
                }
            }
        }
        result.extend(old[at..].iter().copied());
        result
    }

    proptest! {
        #[test]
        fn a_diff_turns_one_into_the_other(old in "([abc]{1,2}\n){0,12}[ab]?", new in "([abc]{1,2}\n){0,12}[ab]?") {
            let diff = unified("/f", Some(&old), Some(&new));
            prop_assert_eq!(patched(&old, &diff), new);
        }
    }
}
