//! Which known words a mistyped one is nearest to.

/// The nearest words, best first; none that share too little with `word`.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    /// Longer words are no commands.
    const LONGEST: usize = 40;
    /// Nobody reads more.
    const MOST: usize = 3;
    if word.len() > LONGEST {
        return Vec::new();
    }
    let allowed = (word.chars().count() / 3).clamp(1, 3);
    let mut near: Vec<(usize, &str)> = known
        .into_iter()
        .map(|other| (distance(word, other), other))
        .filter(|(distance, other)| {
            *distance <= allowed || (word.len() > 2 && other.starts_with(word))
        })
        .collect();
    near.sort_unstable();
    near.truncate(MOST);
    near.into_iter().map(|(_, other)| other).collect()
}

/// How many letters to add, remove, change or swap with a neighbour.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let change = usize::from(a[i - 1] != b[j - 1]);
                let mut best = (rows[i - 1][j] + 1)
                    .min(rows[i][j - 1] + 1)
                    .min(rows[i - 1][j - 1] + change);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    best = best.min(rows[i - 2][j - 2] + 1);
                }
                best
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typing_mistakes() {
        let known = [
            "images", "image", "pull", "push", "run", "rmi", "import", "vimport",
        ];
        for (word, expected) in [
            ("imgaes", &["images", "image"][..]),
            ("pul", &["pull"]),
            ("improt", &["import", "vimport"]),
            ("xyzzy", &[]),
            ("", &[]),
            ("vimp", &["vimport"]),
        ] {
            assert_eq!(nearest(word, known), expected, "{word}");
        }
        assert!(nearest(&"x".repeat(100_000), known).is_empty());
    }
}
