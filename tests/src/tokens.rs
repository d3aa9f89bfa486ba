//! A token server, as registries such as Docker Hub have one beside them (distribution, "Token
//! Authentication Specification"): JSON Web Tokens signed with ES256, whose certificate the registry is
//! given. Signing is openssl's.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::process::{run, run_within, tool};

/// What registry and token server call themselves.
const SERVICE: &str = "registry of the tests";
const ISSUER: &str = "token server of the tests";
const LONGEST_BODY: u64 = 64 << 10;

/// Who may do what, everywhere.
#[derive(Clone, Debug)]
pub struct Account {
    /// User name, shown with a password.
    pub user: &'static str,
    /// Password.
    pub password: &'static str,
    /// What stands for both, for who has logged in elsewhere.
    pub refresh_token: &'static str,
    /// `pull`, `push`.
    pub actions: &'static [&'static str],
}

/// A request for a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Method.
    pub method: String,
    /// Whom the server took it from; nobody without credentials.
    pub user: Option<String>,
    /// `repository:NAME:ACTIONS`, as they came.
    pub scopes: Vec<String>,
}

#[derive(Debug)]
struct State {
    accounts: Vec<Account>,
    asked: Mutex<Vec<Asked>>,
    key: PathBuf,
    /// The certificate, as DER in base 64.
    certificate: String,
}

/// A token server that listens for as long as the test runs.
#[derive(Debug)]
pub struct TokenServer {
    port: u16,
    state: Arc<State>,
    bundle: PathBuf,
}

impl TokenServer {
    /// Makes a key and its certificate in `place`, and listens.
    #[track_caller]
    pub fn start(place: &Path, accounts: &[Account]) -> Self {
        let (key, bundle) = (place.join("token.key"), place.join("token.crt"));
        run(tool("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"])
            .args(["-pkeyopt", "ec_paramgen_curve:prime256v1"])
            .args(["-subj", "/CN=tokens", "-keyout"])
            .arg(&key)
            .arg("-out")
            .arg(&bundle))
        .expect(0);
        let pem = std::fs::read_to_string(&bundle).expect("the certificate just made");
        let lines = pem.lines().filter(|line| !line.starts_with("-----"));
        let state = Arc::new(State {
            accounts: accounts.to_vec(),
            asked: Mutex::default(),
            key,
            certificate: lines.collect(),
        });
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                std::thread::spawn(move || serve(client, &state));
            }
        });
        Self {
            port,
            state,
            bundle,
        }
    }

    /// The lines that make docker-registry want these tokens.
    pub fn configuration(&self) -> String {
        let settings = json!({"token": {
            "realm": format!("http://localhost:{}/token", self.port),
            "service": SERVICE,
            "issuer": ISSUER,
            "rootcertbundle": self.bundle,
        }});
        format!("auth: {settings}\n")
    }

    /// What was asked for since the last call.
    #[track_caller]
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.state.asked.lock().expect("what was asked"))
    }
}

/// One request for each connection. A client that goes away is not the server's matter.
fn serve(client: TcpStream, state: &State) -> Option<()> {
    let mut reader = BufReader::new(client.try_clone().ok()?);
    let mut line = || {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        Some(line.trim_end().to_owned())
    };
    let first = line()?;
    let (method, path) = first.split_once(' ')?;
    let path = path.split(' ').next()?;
    let (mut authorization, mut length) = (String::new(), 0);
    loop {
        let header = line()?;
        let Some((name, value)) = header.split_once(": ") else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "authorization" => value.clone_into(&mut authorization),
            "content-length" => length = value.parse().ok()?,
            _ => {}
        }
    }
    let mut body = String::new();
    let limit = length.min(LONGEST_BODY);
    reader.take(limit).read_to_string(&mut body).ok()?;
    let (status, answer) = answer(state, method, path, &authorization, &body);
    let answer = answer.to_string();
    let mut client = client;
    write!(
        client,
        "HTTP/1.1 {status} Said\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{answer}",
        answer.len()
    )
    .ok()
}

fn answer(
    state: &State,
    method: &str,
    path: &str,
    authorization: &str,
    body: &str,
) -> (u16, Value) {
    let query = path.strip_prefix("/token").unwrap_or_default();
    let form = match method {
        "POST" => body,
        _ => query.trim_start_matches('?'),
    };
    let fields: Vec<(String, String)> = form
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (unquoted(name), unquoted(value)))
        .collect();
    let field = |wanted: &str| {
        let found = fields.iter().find(|(name, _)| name == wanted);
        found.map_or("", |(_, value)| value.as_str())
    };
    let account = |told: &dyn Fn(&Account) -> bool| state.accounts.iter().find(|one| told(one));
    let known = match method {
        "POST" => account(&|one| one.refresh_token == field("refresh_token")),
        _ => account(&|one| authorization == basic(one.user, one.password)),
    };
    let shown = method == "POST" || !authorization.is_empty();
    // In a query each has a field of its own, in a form all have one.
    let scopes: Vec<String> = fields
        .iter()
        .filter(|(name, _)| name == "scope")
        .flat_map(|(_, value)| value.split(' '))
        .map(str::to_owned)
        .collect();
    let asked = Asked {
        method: method.to_owned(),
        user: known.map(|account| account.user.to_owned()),
        scopes: scopes.clone(),
    };
    state.asked.lock().expect("what was asked").push(asked);
    if field("service") != SERVICE
        || (method == "POST" && field("grant_type") != "refresh_token")
        || (shown && known.is_none())
    {
        let words = json!({"errors": [{"code": "UNAUTHORIZED", "message": "who is that"}]});
        return (401, words);
    }
    let actions = known.map_or(&[][..], |account| account.actions);
    let access: Vec<_> = scopes
        .iter()
        .filter_map(|scope| {
            let (kind, rest) = scope.split_once(':')?;
            let (name, wanted) = rest.rsplit_once(':')?;
            let wanted: BTreeSet<_> = wanted.split(',').collect();
            let given: Vec<_> = wanted.iter().filter(|one| actions.contains(one)).collect();
            Some(json!({"type": kind, "name": name, "actions": given}))
        })
        .collect();
    let user = known.map_or("", |account| account.user);
    let token = signed(state, user, &access);
    let key = match method {
        "POST" => "access_token",
        _ => "token",
    };
    (200, json!({key: token, "expires_in": 300}))
}

/// The value of an `Authorization` header.
fn basic(user: &str, password: &str) -> String {
    format!(
        "Basic {}",
        base64(format!("{user}:{password}").as_bytes(), false)
    )
}

/// A JSON Web Token (RFC 7519), in the compact form of RFC 7515.
fn signed(state: &State, user: &str, access: &[Value]) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.unwrap_or(Duration::ZERO).as_secs();
    let header = json!({"typ": "JWT", "alg": "ES256", "x5c": [state.certificate]});
    let claims = json!({
        "iss": ISSUER, "sub": user, "aud": SERVICE, "iat": now, "nbf": now, "exp": now + 300,
        "jti": format!("{:016x}", rand()), "access": access,
    });
    let mut token = format!(
        "{}.{}",
        base64(header.to_string().as_bytes(), true),
        base64(claims.to_string().as_bytes(), true)
    );
    let mut sign = tool("openssl");
    sign.args(["dgst", "-sha256", "-sign"]).arg(&state.key);
    let signature = run_within(&mut sign, token.as_bytes(), Duration::from_mins(1)).expect(0);
    let signature = base64(&two_numbers(&signature.stdout), true);
    let _ = write!(token, ".{signature}");
    token
}

/// A number that no other token has.
fn rand() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(std::process::id())
}

/// The numbers r and s of an ECDSA signature, each 32 bytes long, out of the sequence that openssl
/// writes (RFC 3279, section 2.2.3).
fn two_numbers(der: &[u8]) -> Vec<u8> {
    let mut rest = &der[2..];
    let mut numbers = Vec::new();
    for _ in 0..2 {
        let [2, length, tail @ ..] = rest else {
            panic!("no number in the signature {der:x?}")
        };
        let (number, tail) = tail.split_at(usize::from(*length));
        let digits: Vec<u8> = number.iter().copied().skip_while(|b| *b == 0).collect();
        numbers.resize(numbers.len() + 32 - digits.len(), 0);
        numbers.extend(digits);
        rest = tail;
    }
    numbers
}

/// Base 64, the alphabet of URLs without padding or the usual one with it (RFC 4648).
fn base64(bytes: &[u8], for_urls: bool) -> String {
    let last = if for_urls { "-_" } else { "+/" };
    let digits: Vec<u8> = ('A'..='Z')
        .chain('a'..='z')
        .chain('0'..='9')
        .chain(last.chars())
        .map(|c| c as u8)
        .collect();
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let number = three
            .iter()
            .fold(0_usize, |number, byte| number << 8 | usize::from(*byte))
            << (8 * (3 - three.len()));
        for place in 0..=three.len() {
            text.push(char::from(digits[number >> (18 - 6 * place) & 63]));
        }
        if !for_urls {
            text.extend(std::iter::repeat_n('=', 3 - three.len()));
        }
    }
    text
}

/// A field of a query or a form.
fn unquoted(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        let hex = tail.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        match (first, hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            (b'+', _) => bytes.push(b' '),
            _ => bytes.push(*first),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings() {
        // RFC 4648, section 10.
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
        ] {
            assert_eq!(base64(bytes.as_bytes(), false), text);
            assert_eq!(base64(bytes.as_bytes(), true), text.trim_end_matches('='));
        }
        assert_eq!(base64(&[0xfb, 0xff], true), "-_8");
        assert_eq!(unquoted("a+b%2Fc%3a%"), "a b/c:%");
        let mut der = vec![0x30, 8, 2, 2, 0, 0x81, 2, 2, 1, 2];
        let numbers = two_numbers(&der);
        assert_eq!((numbers.len(), numbers[31]), (64, 0x81));
        assert_eq!(numbers[62..], [1, 2]);
        der[4] = 1;
        assert_eq!(two_numbers(&der)[30..32], [1, 0x81]);
    }
}
