//! The htpasswd format: a user and the bcrypt hash of a password on each line.
//!
//! Only bcrypt is taken. The other kinds that Apache writes (MD5, SHA-1, crypt) are broken, or slow
//! nobody down who guesses.

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use core::str;

use super::MAX_FILE;

/// Longest password that bcrypt reads in whole, in bytes.
pub const MAX_PASSWORD: usize = 72;
/// Longest user name, in bytes.
pub const MAX_USER: usize = 255;
/// Highest cost that is taken: each check of such a hash keeps a processor busy for seconds.
pub const MAX_COST: u32 = 16;
/// Lowest cost that bcrypt knows.
const MIN_COST: u32 = 4;
/// Most users of one file.
const MAX_USERS: usize = 10_000;
/// Letters of salt and hash, behind `$2y$10$`.
const HASH_LETTERS: usize = 53;

/// One user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HtpasswdEntry {
    /// The name.
    pub user: String,
    /// The hash as it is written: `$2y$10$…`.
    pub hash: String,
    /// The logarithm of the work that one check takes.
    pub cost: u32,
}

/// Why an htpasswd file cannot be used. Never repeats a hash.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HtpasswdError {
    /// The file is longer than [`MAX_FILE`] or has too many users.
    #[error("it is longer than {MAX_FILE} bytes or {MAX_USERS} users")]
    TooLarge,
    /// One line is wrong.
    #[error("line {line}: {rule}")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// The rule that it breaks.
        rule: HtpasswdRule,
    },
    /// A user name that the format cannot hold.
    #[error("{}", HtpasswdRule::User)]
    User,
}

/// A rule of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HtpasswdRule {
    /// Text.
    #[error("it is not UTF-8 text")]
    Text,
    /// `user:hash`.
    #[error("expected USER:HASH")]
    Form,
    /// The name.
    #[error("a user name has 1 to {MAX_USER} bytes, no colon and no control character")]
    User,
    /// Another kind of hash.
    #[error("only bcrypt hashes are taken ($2a$, $2b$, $2y$); make one with: htpasswd -B")]
    Kind,
    /// Not as long, or not of the letters that a bcrypt hash has.
    #[error("the bcrypt hash is malformed")]
    Hash,
    /// The cost.
    #[error("the bcrypt cost is not between {MIN_COST} and {MAX_COST}")]
    Cost,
    /// Twice the same.
    #[error("this user stands on an earlier line too")]
    Twice,
}

/// Reads a file. Empty lines, and those that begin with `#`, mean nothing.
pub fn parse_htpasswd(file: &[u8]) -> Result<Vec<HtpasswdEntry>, HtpasswdError> {
    if file.len() > MAX_FILE {
        return Err(HtpasswdError::TooLarge);
    }
    let mut users = BTreeSet::new();
    let mut entries = Vec::new();
    for (index, line) in file.split(|byte| *byte == b'\n').enumerate() {
        let fail = |rule| HtpasswdError::Line {
            line: index + 1,
            rule,
        };
        let line = str::from_utf8(line).map_err(|_| fail(HtpasswdRule::Text))?;
        let line = line.strip_suffix('\r').unwrap_or(line);
        if is_silent(line) {
            continue;
        }
        let entry = parse_line(line).map_err(fail)?;
        if !users.insert(entry.user.clone()) {
            return Err(fail(HtpasswdRule::Twice));
        }
        if entries.len() == MAX_USERS {
            return Err(HtpasswdError::TooLarge);
        }
        entries.push(entry);
    }
    Ok(entries)
}

/// The text of a file with this user's hash in it: instead of the user's line, or behind the others,
/// which stay as they are.
pub fn with_user(text: &str, user: &str, hash: &str) -> Result<String, HtpasswdError> {
    check_user(user).map_err(|_| HtpasswdError::User)?;
    let mut new = String::with_capacity(text.len() + user.len() + hash.len() + 2);
    let mut found = false;
    for line in text.lines() {
        let own = !is_silent(line) && line.split_once(':').is_some_and(|(name, _)| name == user);
        if own && found {
            continue;
        }
        if own {
            push_entry(&mut new, user, hash);
            found = true;
        } else {
            new.push_str(line);
            new.push('\n');
        }
    }
    if !found {
        push_entry(&mut new, user, hash);
    }
    Ok(new)
}

/// The text of a file without this user; other lines stay as they are.
pub fn without_user(text: &str, user: &str) -> String {
    let mut new = String::with_capacity(text.len());
    for line in text.lines() {
        let own = !is_silent(line) && line.split_once(':').is_some_and(|(name, _)| name == user);
        if !own {
            new.push_str(line);
            new.push('\n');
        }
    }
    new
}

/// Whether a name may stand in such a file.
pub fn check_user(user: &str) -> Result<(), HtpasswdRule> {
    let legal = (1..=MAX_USER).contains(&user.len())
        && !user.starts_with('#')
        && !user.contains(|c: char| c == ':' || c.is_control());
    if legal {
        Ok(())
    } else {
        Err(HtpasswdRule::User)
    }
}

fn push_entry(text: &mut String, user: &str, hash: &str) {
    text.push_str(user);
    text.push(':');
    text.push_str(hash);
    text.push('\n');
}

fn is_silent(line: &str) -> bool {
    line.trim().is_empty() || line.starts_with('#')
}

fn parse_line(line: &str) -> Result<HtpasswdEntry, HtpasswdRule> {
    let (user, hash) = line.split_once(':').ok_or(HtpasswdRule::Form)?;
    check_user(user)?;
    let cost = check_hash(hash)?;
    Ok(HtpasswdEntry {
        user: user.into(),
        hash: hash.into(),
        cost,
    })
}

/// Checks the shape of a bcrypt hash; gives its cost.
fn check_hash(hash: &str) -> Result<u32, HtpasswdRule> {
    let rest = ["$2a$", "$2b$", "$2y$"]
        .iter()
        .find_map(|kind| hash.strip_prefix(kind))
        .ok_or(HtpasswdRule::Kind)?;
    let (cost, letters) = rest.split_once('$').ok_or(HtpasswdRule::Hash)?;
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'/');
    if letters.len() != HASH_LETTERS || !letters.bytes().all(is_letter) {
        return Err(HtpasswdRule::Hash);
    }
    match cost.as_bytes() {
        [tens @ b'0'..=b'9', units @ b'0'..=b'9'] => {
            let cost = u32::from(tens - b'0') * 10 + u32::from(units - b'0');
            if (MIN_COST..=MAX_COST).contains(&cost) {
                Ok(cost)
            } else {
                Err(HtpasswdRule::Cost)
            }
        }
        _ => Err(HtpasswdRule::Hash),
    }
}

#[cfg(test)]
mod tests {
    use alloc::{format, vec};

    use proptest::prelude::*;

    use super::*;

    const HASH: &str = "$2y$05$abcdefghijklmnopqrstuuE8hVYLr2Vv0hVYLr2Vv0hVYLr2Vv0aa";

    fn line_error(text: &str) -> (usize, HtpasswdRule) {
        match parse_htpasswd(text.as_bytes()) {
            Err(HtpasswdError::Line { line, rule }) => (line, rule),
            other => panic!("{text:?}: {other:?}"),
        }
    }

    #[test]
    fn users_and_their_hashes() {
        assert_eq!(HASH.len(), 60);
        let text = format!("# made by hand\n\nyocto:{HASH}\r\n ci user:{HASH}");
        let entries = parse_htpasswd(text.as_bytes()).unwrap();
        let users: Vec<_> = entries.iter().map(|entry| entry.user.as_str()).collect();
        assert_eq!(users, ["yocto", " ci user"]);
        assert_eq!((entries[0].cost, entries[0].hash.as_str()), (5, HASH));
        assert_eq!(parse_htpasswd(b"").unwrap(), vec![]);
    }

    #[test]
    fn a_user_goes_and_everything_else_stays() {
        let text = format!("# yocto: a comment\nyocto:{HASH}\nyocto2:{HASH}\n");
        let left = format!("# yocto: a comment\nyocto2:{HASH}\n");
        assert_eq!(without_user(&text, "yocto"), left);
        assert_eq!(without_user(&left, "yocto"), left);
    }

    #[test]
    fn other_kinds_of_hashes_are_refused_with_their_line() {
        for hash in [
            "$apr1$salt$abcdefghijklmnopqrstuv",
            "{SHA}2jmj7l5rSw0yVb/vlWAYkK/YBwk=",
            "rqXexS6ZhobKA",
            "plain",
            "$2x$05$abcdefghijklmnopqrstuuE8hVYLr2Vv0hVYLr2Vv0hVYLr2Vv0aa",
            "$6$rounds=5000$salt$hash",
        ] {
            let text = format!("a:{HASH}\nb:{hash}\n");
            assert_eq!(line_error(&text), (2, HtpasswdRule::Kind), "{hash}");
        }
    }

    #[test]
    fn each_rule_is_told() {
        let expensive = HASH.replace("$05$", "$31$");
        let cheap = HASH.replace("$05$", "$03$");
        for (text, rule) in [
            ("yocto".into(), HtpasswdRule::Form),
            (format!(":{HASH}"), HtpasswdRule::User),
            (format!("a\tb:{HASH}"), HtpasswdRule::User),
            (format!("{}:{HASH}", "u".repeat(256)), HtpasswdRule::User),
            (format!("a:{expensive}"), HtpasswdRule::Cost),
            (format!("a:{cheap}"), HtpasswdRule::Cost),
            (format!("a:{HASH}x"), HtpasswdRule::Hash),
            (format!("a:{}", &HASH[..59]), HtpasswdRule::Hash),
            (
                format!("a:{}", HASH.replace("$05$", "$5$")),
                HtpasswdRule::Hash,
            ),
        ] {
            assert_eq!(line_error(&text), (1, rule), "{text}");
        }
        let twice = format!("a:{HASH}\nb:{HASH}\na:{HASH}");
        assert_eq!(line_error(&twice), (3, HtpasswdRule::Twice));
        let broken = parse_htpasswd(b"\n\xff:x").unwrap_err();
        assert_eq!(
            broken,
            HtpasswdError::Line {
                line: 2,
                rule: HtpasswdRule::Text
            }
        );
        let long = vec![b'\n'; MAX_FILE + 1];
        assert_eq!(parse_htpasswd(&long), Err(HtpasswdError::TooLarge));
    }

    #[test]
    fn errors_do_not_repeat_hashes() {
        let error = parse_htpasswd(b"yocto:hunter2").unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }

    #[test]
    fn one_line_changes_and_the_others_stay() {
        let old = format!("# team\nci:{HASH}\nyocto:{HASH}\nyocto:{HASH}\n");
        let new = with_user(&old, "yocto", "$new").unwrap();
        assert_eq!(new, format!("# team\nci:{HASH}\nyocto:$new\n"));
        assert_eq!(with_user("", "u", "$h").unwrap(), "u:$h\n");
        assert_eq!(with_user("a:$x", "u", "$h").unwrap(), "a:$x\nu:$h\n");
        for user in ["", "a:b", "a\nb", "#a"] {
            assert_eq!(with_user("", user, "$h"), Err(HtpasswdError::User));
        }
    }

    proptest! {
        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse_htpasswd(&bytes);
        }

        #[test]
        fn what_is_added_is_found(text in "([a-z]{1,3}:[a-z$]{0,9}|#[a-z]{0,5}|)(\n([a-z]{1,3}:[a-z$]{0,9}|))*", user in "[a-z ]{1,8}") {
            let new = with_user(&text, &user, HASH).unwrap();
            let own = new.lines().filter(|line| line.split_once(':').is_some_and(|(n, _)| n == user));
            prop_assert_eq!(own.collect::<Vec<_>>(), [format!("{user}:{HASH}")]);
            // Doing it again changes nothing.
            prop_assert_eq!(&with_user(&new, &user, HASH).unwrap(), &new);
        }

        #[test]
        fn written_files_are_read(users in prop::collection::btree_set("[a-zA-Z0-9._-]{1,20}", 0..20)) {
            let mut text = String::new();
            for user in &users {
                text = with_user(&text, user, HASH).unwrap();
            }
            let entries = parse_htpasswd(text.as_bytes()).unwrap();
            prop_assert_eq!(entries.len(), users.len());
            prop_assert!(entries.iter().all(|entry| users.contains(&entry.user) && entry.hash == HASH));
        }
    }
}
