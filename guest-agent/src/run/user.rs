//! The user of a container's process, looked up in the container's own files.
//!
//! The files belong to the image: they are read after the root has been changed, so that no link
//! leads out of the container, only when they are plain files, and only up to [`MAX_FILE`].

use std::io::Read;

use rustix::fs::{FileType, Mode, OFlags};
use serde::{Deserialize, Serialize};

/// Longest `/etc/passwd` or `/etc/group` that is read, in bytes.
const MAX_FILE: u64 = 8 * 1024 * 1024;

/// Who a process runs as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary group ids, without duplicates.
    pub groups: Vec<u32>,
    /// Home directory, `/` when the user has no entry.
    pub home: String,
}

/// Why a `user[:group]` has no meaning in this container.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// A name that the password file does not know.
    #[error("unable to find user {0}: no matching entry in the container's /etc/passwd")]
    NoUser(String),
    /// A name that the group file does not know.
    #[error("unable to find group {0}: no matching entry in the container's /etc/group")]
    NoGroup(String),
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields
            .next()
            .filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(Account {
            name,
            uid,
            gid,
            home: fields.nth(1).unwrap_or_default(),
        })
    })
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn groups(group: &str) -> impl Iterator<Item = Group<'_>> {
    group.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields
            .next()
            .filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some(Group {
            name,
            gid,
            members: fields.next().unwrap_or_default(),
        })
    })
}

/// Resolves `user[:group]`, each a name or a number; empty means root.
///
/// A name that exists wins over its reading as a number. A number without an entry is used as it
/// is, with group 0. Supplementary groups come from the group file, but only when no group is
/// named.
pub fn resolve(user: &str, passwd: &str, group: &str) -> Result<Identity, UserError> {
    let (name, wanted_group) = match user.split_once(':') {
        Some((name, group)) => (name, Some(group).filter(|group| !group.is_empty())),
        None => (user, None),
    };
    let number = if name.is_empty() {
        Some(0)
    } else {
        parse_id(name)
    };
    let account = accounts(passwd)
        .find(|account| account.name == name)
        .or_else(|| accounts(passwd).find(|account| Some(account.uid) == number));
    let (uid, primary, home) = match (&account, number) {
        (Some(account), _) => (account.uid, account.gid, account.home),
        (None, Some(uid)) => (uid, 0, ""),
        (None, None) => return Err(UserError::NoUser(name.to_owned())),
    };
    let home = if home.is_empty() { "/" } else { home }.to_owned();

    if let Some(wanted) = wanted_group {
        let gid = groups(group)
            .find(|group| group.name == wanted)
            .map(|group| group.gid)
            .or_else(|| parse_id(wanted))
            .ok_or_else(|| UserError::NoGroup(wanted.to_owned()))?;
        return Ok(Identity {
            uid,
            gid,
            groups: vec![],
            home,
        });
    }
    let mut supplementary = Vec::new();
    if let Some(account) = account {
        for entry in groups(group) {
            if entry
                .members
                .split(',')
                .any(|member| member.trim() == account.name)
                && entry.gid != primary
                && !supplementary.contains(&entry.gid)
            {
                supplementary.push(entry.gid);
            }
        }
    }
    Ok(Identity {
        uid,
        gid: primary,
        groups: supplementary,
        home,
    })
}

/// An id in decimal, below the value that system calls read as "unchanged".
fn parse_id(text: &str) -> Option<u32> {
    text.parse::<u32>()
        .ok()
        .filter(|&id| id < u32::MAX && text.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Adds groups, each a name or a number, to the supplementary ones.
fn add_groups(identity: &mut Identity, more: &[String], group: &str) -> Result<(), UserError> {
    for wanted in more {
        let gid = groups(group)
            .find(|group| group.name == wanted)
            .map(|group| group.gid)
            .or_else(|| parse_id(wanted))
            .ok_or_else(|| UserError::NoGroup(wanted.clone()))?;
        if !identity.groups.contains(&gid) {
            identity.groups.push(gid);
        }
    }
    Ok(())
}

/// Resolves `user` and more groups against `/etc/passwd` and `/etc/group` of the current root.
pub fn resolve_here(user: &str, more: &[String]) -> Result<Identity, UserError> {
    let group = read_plain("/etc/group");
    let mut identity = resolve(user, &read_plain("/etc/passwd"), &group)?;
    add_groups(&mut identity, more, &group)?;
    Ok(identity)
}

/// The text of a plain file; empty when it is missing, special or too long.
fn read_plain(path: &str) -> String {
    // Neither a FIFO nor a device of the image may stop or surprise the runtime.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let Ok(file) = rustix::fs::open(path, flags, Mode::empty()) else {
        return String::new();
    };
    let plain = rustix::fs::fstat(&file)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
    let mut bytes = Vec::new();
    if !plain
        || std::fs::File::from(file)
            .take(MAX_FILE)
            .read_to_end(&mut bytes)
            .is_err()
    {
        return String::new();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
        # a comment:x:9:9::/:\n\
        broken line\n\
        app:x:1000:1001:App,,,:/home/app:/bin/sh\n\
        1234:x:77:78::/odd:\n\
        nohome:x:5:5::\n";
    const GROUP: &str = "root:x:0:root\napp:x:1001:\nwheel:x:10:root,app\nvideo:x:44: app \n\
        again:x:44:app\n";

    fn id(user: &str) -> Result<Identity, UserError> {
        resolve(user, PASSWD, GROUP)
    }

    #[test]
    fn names_and_numbers() {
        let app = Identity {
            uid: 1000,
            gid: 1001,
            groups: vec![10, 44],
            home: "/home/app".into(),
        };
        assert_eq!(id("app").unwrap(), app);
        assert_eq!(id("1000").unwrap(), app);
        let root = Identity {
            uid: 0,
            gid: 0,
            groups: vec![10],
            home: "/root".into(),
        };
        assert_eq!(id("").unwrap(), root);
        assert_eq!(id("0").unwrap(), root);
        // A name made of digits is a name first.
        assert_eq!(id("1234").unwrap().uid, 77);
        assert_eq!(id("nohome").unwrap().home, "/");
    }

    #[test]
    fn a_named_group_replaces_all_others() {
        let got = id("app:video").unwrap();
        assert_eq!((got.gid, got.groups), (44, vec![]));
        assert_eq!(id("app:555").unwrap().gid, 555);
        assert_eq!(id("app:").unwrap().gid, 1001);
        assert_eq!(id(":video").unwrap().gid, 44);
    }

    #[test]
    fn unknown_ids_are_taken_as_they_are_and_unknown_names_refused() {
        let got = id("4242").unwrap();
        assert_eq!((got.uid, got.gid, got.home.as_str()), (4242, 0, "/"));
        assert_eq!(id("nobody"), Err(UserError::NoUser("nobody".into())));
        assert_eq!(id("app:none"), Err(UserError::NoGroup("none".into())));
        assert!(id("-1").is_err());
        assert!(id("+1").is_err());
        assert!(id("4294967295").is_err());
        assert_eq!(resolve("0", "", "").unwrap().uid, 0);
    }

    #[test]
    fn more_groups_by_name_or_number() {
        let mut app = id("app:video").unwrap();
        let more = ["wheel", "77", "wheel"].map(str::to_owned);
        add_groups(&mut app, &more, GROUP).unwrap();
        assert_eq!((app.gid, app.groups.clone()), (44, vec![10, 77]));
        let error = add_groups(&mut app, &["none".to_owned()], GROUP);
        assert_eq!(error, Err(UserError::NoGroup("none".into())));
    }

    proptest! {
        #[test]
        fn never_panics(user in ".{0,20}", passwd in ".{0,80}", group in ".{0,80}") {
            let _ = resolve(&user, &passwd, &group);
        }
    }
}
