//! Users with passwords, from an htpasswd file that is watched.
//!
//! A bcrypt check takes tens of milliseconds of a processor by design. So few run at a time, and a
//! password that was right is remembered for some minutes, as a hash under a key that only this
//! process knows. Wrong ones are never remembered, and unknown users cost what known ones cost. Who is
//! checked next is told by [`super::queue`].

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use http::header::{AUTHORIZATION, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use ring::hmac;
use ring::rand::SystemRandom;
use tokio::time::Instant;
use vdkr_core::credentials::htpasswd::{HtpasswdError, MAX_PASSWORD, parse_htpasswd};
use vdkr_core::credentials::{Credential, MAX_FILE, Secret};
use vdkr_core::distribution::ErrorCode;

use super::queue::{Peer, Queue};
use crate::budget::busy;
use crate::error::Refusal;
use crate::fs::{Changes, Watched};

/// How long a password that was right is remembered.
const REMEMBERED: Duration = Duration::from_mins(5);
/// Most that are remembered.
const MOST_REMEMBERED: usize = 1024;
/// The work of the hashes made here, as a logarithm; also of unknown users in an empty file.
const COST: u32 = 10;
/// What a client is told it logs in to.
const CHALLENGE: HeaderValue = HeaderValue::from_static("Basic realm=\"container-registry\"");

/// Why users and passwords cannot be used. Never repeats a password or a hash.
#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    /// The file cannot be read.
    #[error("cannot read the htpasswd file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is malformed.
    #[error("the htpasswd file {} is not usable: {source}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: HtpasswdError,
    },
    /// The system gives no random numbers.
    #[error("no random numbers for the password cache")]
    Random,
    /// A password that bcrypt would cut, or take for shorter.
    #[error("a password has 1 to {MAX_PASSWORD} bytes and no zero byte")]
    Password,
    /// The library failed.
    #[error("the password cannot be hashed: {0}")]
    Hash(String),
}

/// The bcrypt hash of a password, as an htpasswd file holds it (`$2y$10$…`). Takes some tens of
/// milliseconds.
pub fn hash_password(password: &Secret) -> Result<String, UsersError> {
    let bytes = password.expose().as_bytes();
    if bytes.is_empty() || bytes.len() > MAX_PASSWORD || bytes.contains(&0) {
        return Err(UsersError::Password);
    }
    bcrypt::non_truncating_hash_with_result(bytes, COST)
        .map(|parts| parts.format_for_version(bcrypt::Version::TwoY))
        .map_err(|error| UsersError::Hash(error.to_string()))
}

/// Whether a password is the one of a bcrypt hash. As slow as the hash's cost says.
pub fn password_matches(password: &Secret, hash: &str) -> bool {
    bcrypt::verify(password.expose(), hash).unwrap_or(false)
}

/// Those who may use the registry.
pub(crate) struct Users {
    file: Watched,
    /// Since the file was read last, to good or bad effect.
    changes: Mutex<Changes<1>>,
    list: RwLock<Arc<List>>,
    key: hmac::Key,
    right: Mutex<HashMap<Ticket, Instant>>,
    queue: Queue,
}

/// Stands for a user, a password and the hash that it was right for.
type Ticket = [u8; 32];

struct List {
    hashes: HashMap<String, String>,
    /// What the passwords of unknown users are checked against.
    nobody: String,
}

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Users")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

impl Users {
    /// Reads the file. Without one that can be used there is no server: an open door would be worse.
    pub(crate) fn open(path: &Path) -> Result<Self, UsersError> {
        let file = Watched::new(path, MAX_FILE as u64);
        let seen = file.stamp();
        let list = load(&file)?;
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .map_err(|_| UsersError::Random)?;
        Ok(Self {
            file,
            changes: Mutex::new(Changes::since([seen])),
            list: RwLock::new(Arc::new(list)),
            key,
            right: Mutex::default(),
            queue: Queue::new(),
        })
    }

    /// Takes up a file that has changed. What cannot be used is told once, and the old users stay.
    /// Blocks.
    pub(crate) fn refresh(&self, at_once: bool) {
        let now = [self.file.stamp()];
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        if !changes.are_due(now, at_once) {
            return;
        }
        match load(&self.file) {
            Ok(list) => {
                let users = list.hashes.len();
                *self.list.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(list);
                self.remembered().clear();
                tracing::info!(users, file = %self.file.path().display(), "new list of users");
            }
            Err(error) => {
                tracing::warn!(%error, "the users have changed; going on with the old ones");
            }
        }
    }

    /// Whether the request shows a user's password.
    pub(crate) async fn admit(&self, headers: &HeaderMap, peer: Peer) -> Result<(), Refusal> {
        let refused = |message| {
            Refusal::new(ErrorCode::Unauthorized, message)
                .with_header(WWW_AUTHENTICATE, CHALLENGE.clone())
        };
        let mut shown = headers.get_all(AUTHORIZATION).iter();
        let (first, None) = (shown.next(), shown.next()) else {
            return Err(refused("more than one Authorization header"));
        };
        let Some(first) = first else {
            return Err(refused(
                "log in first: a user name and a password are needed",
            ));
        };
        let Some(Credential::Basic { username, password }) =
            Credential::from_basic_header(first.as_bytes())
        else {
            return Err(refused(
                "the Authorization header is not usable: a user name and a password are needed",
            ));
        };
        if self.knows(peer, &username, password).await? {
            Ok(())
        } else {
            Err(refused("the user name or the password is wrong"))
        }
    }

    async fn knows(&self, peer: Peer, user: &str, password: Secret) -> Result<bool, Refusal> {
        let list = Arc::clone(&self.list.read().unwrap_or_else(PoisonError::into_inner));
        let (hash, known) = match list.hashes.get(user) {
            Some(hash) => (hash.clone(), true),
            None => (list.nobody.clone(), false),
        };
        let ticket = self.ticket(user, &password, &hash);
        if self.remembers(&ticket) {
            return Ok(true);
        }
        let Some(turn) = self.queue.turn(peer).await else {
            return Err(busy("too many passwords wait to be checked"));
        };
        // The parallel connections of one client come together: the first one's check will do.
        if self.remembers(&ticket) {
            return Ok(true);
        }
        // The turn ends with the check, even when the client does not wait for it.
        let check = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            password_matches(&password, &hash)
        });
        let right = check.await.unwrap_or(false) && known;
        if right {
            self.remember(ticket);
        }
        Ok(right)
    }

    fn ticket(&self, user: &str, password: &Secret, hash: &str) -> Ticket {
        let mut context = hmac::Context::with_key(&self.key);
        // Lengths keep the parts apart.
        for part in [user, password.expose(), hash] {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part.as_bytes());
        }
        let mut ticket = Ticket::default();
        ticket.copy_from_slice(context.sign().as_ref());
        ticket
    }

    fn remembers(&self, ticket: &Ticket) -> bool {
        let mut right = self.remembered();
        match right.get(ticket) {
            Some(until) if Instant::now() < *until => true,
            Some(_) => {
                right.remove(ticket);
                false
            }
            None => false,
        }
    }

    fn remember(&self, ticket: Ticket) {
        let now = Instant::now();
        let mut right = self.remembered();
        if right.len() >= MOST_REMEMBERED {
            right.retain(|_, until| now < *until);
        }
        if right.len() >= MOST_REMEMBERED {
            right.clear();
        }
        right.insert(ticket, now + REMEMBERED);
    }

    fn remembered(&self) -> std::sync::MutexGuard<'_, HashMap<Ticket, Instant>> {
        self.right.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn load(file: &Watched) -> Result<List, UsersError> {
    let content = file.read().map_err(|source| UsersError::Read {
        path: file.path().to_owned(),
        source,
    })?;
    let entries = parse_htpasswd(&content).map_err(|source| UsersError::Content {
        path: file.path().to_owned(),
        source,
    })?;
    let cost = entries.iter().map(|entry| entry.cost).max().unwrap_or(COST);
    Ok(List {
        hashes: entries
            .into_iter()
            .map(|entry| (entry.user, entry.hash))
            .collect(),
        // A legal hash of no known password.
        nobody: format!("$2y${cost:02}${}", ".".repeat(53)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cost 4, so that tests do not wait.
    fn cheap(password: &str) -> String {
        bcrypt::hash(password, 4).unwrap()
    }

    fn users(text: &str) -> (tempfile::TempDir, Users) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("htpasswd"), text).unwrap();
        let users = Users::open(&dir.path().join("htpasswd")).unwrap();
        (dir, users)
    }

    async fn knows(users: &Users, user: &str, password: &str) -> bool {
        let password = Secret::new(password);
        let known = users.knows(Peer::default(), user, password).await;
        known.unwrap()
    }

    #[test]
    fn made_hashes_are_matched_and_illegal_passwords_refused() {
        let password = Secret::new("correct horse");
        let hash = hash_password(&password).unwrap();
        assert!(hash.starts_with("$2y$10$"), "{hash}");
        assert!(password_matches(&password, &hash));
        assert!(!password_matches(&Secret::new("wrong"), &hash));
        assert!(!password_matches(&password, "$2y$10$short"));
        for bad in ["", "a\0b", &"x".repeat(73)] {
            assert!(matches!(
                hash_password(&Secret::new(bad)),
                Err(UsersError::Password)
            ));
        }
    }

    #[tokio::test]
    async fn right_passwords_are_remembered_wrong_ones_are_not() {
        let (_dir, users) = users(&format!("yocto:{}\n", cheap("secret")));
        for _ in 0..2 {
            assert!(!knows(&users, "yocto", "wrong").await);
            assert!(!knows(&users, "nobody", "secret").await);
            assert_eq!(users.remembered().len(), 0);
        }
        assert!(knows(&users, "yocto", "secret").await);
        assert_eq!(users.remembered().len(), 1);
        // With no check allowed, only what is remembered gets in.
        let all = Arc::clone(&users.queue.turns)
            .acquire_many_owned(crate::access::queue::CHECKS as u32)
            .await;
        assert!(knows(&users, "yocto", "secret").await);
        drop(all);
    }

    #[tokio::test(start_paused = true)]
    async fn memory_ends() {
        let (_dir, users) = users(&format!("yocto:{}\n", cheap("secret")));
        let ticket = |number: u64| users.ticket(&number.to_string(), &Secret::new("p"), "h");
        users.remember(ticket(0));
        assert!(users.remembers(&ticket(0)));
        tokio::time::advance(REMEMBERED).await;
        assert!(!users.remembers(&ticket(0)));
        for number in 0..3000 {
            users.remember(ticket(number));
            assert!(users.remembered().len() <= MOST_REMEMBERED);
            assert!(users.remembers(&ticket(number)));
        }
        // The parts of a ticket cannot run into one another.
        let apart = users.ticket("a", &Secret::new("bc"), "h");
        assert_ne!(apart, users.ticket("ab", &Secret::new("c"), "h"));
    }

    #[tokio::test]
    async fn a_changed_file_counts_and_a_broken_one_does_not() {
        let (dir, users) = users(&format!("yocto:{}\n", cheap("old")));
        let path = dir.path().join("htpasswd");
        let replace = |text: &str| {
            std::fs::write(dir.path().join("new"), text).unwrap();
            std::fs::rename(dir.path().join("new"), &path).unwrap();
            users.refresh(true);
        };
        assert!(knows(&users, "yocto", "old").await);
        replace("yocto:$apr1$md5$hash\n");
        assert!(knows(&users, "yocto", "old").await);
        replace(&format!("yocto:{}\n", cheap("new")));
        assert_eq!(users.remembered().len(), 0);
        assert!(!knows(&users, "yocto", "old").await);
        assert!(knows(&users, "yocto", "new").await);
        replace("# nobody\n");
        assert!(!knows(&users, "yocto", "new").await);
        std::fs::remove_file(&path).unwrap();
        users.refresh(true);
        replace(&format!("yocto:{}\n", cheap("again")));
        assert!(knows(&users, "yocto", "again").await);
    }

    #[tokio::test]
    async fn headers_are_taken_apart_strictly() {
        let (_dir, users) = users(&format!("yocto:{}\n", cheap("secret")));
        let ask = async |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(AUTHORIZATION, value.parse().unwrap());
            }
            users.admit(&headers, Peer::default()).await
        };
        let right = Credential::from_pair("yocto:secret").unwrap();
        let right = right.authorization().unwrap();
        assert!(ask(&[right.expose()]).await.is_ok());
        for values in [
            &[][..],
            &["Basic"],
            &["Bearer abc"],
            &["Basic eW9jdG86d3Jvbmc="],
            &[right.expose(), right.expose()],
        ] {
            let refusal = ask(values).await.unwrap_err();
            assert_eq!(refusal.status(), http::StatusCode::UNAUTHORIZED);
            let response = refusal.into_response();
            assert_eq!(response.headers()[WWW_AUTHENTICATE], CHALLENGE);
        }
    }

    #[test]
    fn unknown_users_cost_what_the_dearest_known_one_costs() {
        let (_dir, cheap_ones) = users(&format!("yocto:{}\n", cheap("x")));
        let list = cheap_ones.list.read().unwrap();
        assert!(list.nobody.starts_with("$2y$04$"));
        assert_eq!(list.nobody.len(), 60);
        // Checked to its end: an error would come back at once.
        assert!(!bcrypt::verify("anything", &list.nobody).unwrap());
        assert!(
            users("")
                .1
                .list
                .read()
                .unwrap()
                .nobody
                .starts_with("$2y$10$")
        );
    }
}
