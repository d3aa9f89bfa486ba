//! Content digests (OCI image specification, descriptor "Digests"): `sha256:` or `sha512:` and
//! lower-case hexadecimal.

use alloc::string::String;
use core::fmt;
use core::str::FromStr;

use serde::de::{Deserialize, Deserializer, Error as _};
use serde::ser::{Serialize, Serializer};
use sha2::Digest as _;

/// A registered digest algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// SHA-256, 64 hexadecimal digits.
    Sha256,
    /// SHA-512, 128 hexadecimal digits.
    Sha512,
}

impl Algorithm {
    /// The name before the colon.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// How many hexadecimal digits a digest of this algorithm has.
    pub fn hex_len(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }

    /// The algorithm of this name, if it is one of the two that are supported.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "sha256" => Some(Self::Sha256),
            "sha512" => Some(Self::Sha512),
            _ => None,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is wrong with the text of a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum DigestRule {
    /// No colon between algorithm and digits.
    #[error("a digest is written algorithm:hex, like sha256:0123…")]
    Format,
    /// An algorithm other than sha256 and sha512.
    #[error("the digest algorithm is sha256 or sha512")]
    Algorithm,
    /// A character other than `0-9a-f`.
    #[error("the digits of a digest are lower-case hexadecimal")]
    Character,
    /// Too few or too many digits.
    #[error("a sha256 digest has 64 hexadecimal digits, a sha512 digest 128")]
    Length,
}

/// A text that is not a digest: the rule it breaks, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{rule} (at byte {offset})")]
pub struct DigestError {
    /// Byte offset of the first offending character; the length of the text where something is missing.
    pub offset: usize,
    /// The rule broken.
    pub rule: DigestRule,
}

/// A checked digest. Two digests are equal when algorithm and digits are.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest {
    text: String,
    algorithm: Algorithm,
}

impl Digest {
    /// Reads `sha256:<64 hex>` or `sha512:<128 hex>`, lower-case only.
    pub fn parse(text: &str) -> Result<Self, DigestError> {
        let fail = |offset, rule| Err(DigestError { offset, rule });
        let Some((name, hex)) = text.split_once(':') else {
            // A known algorithm without its digits lacks the colon at its end.
            let offset = if Algorithm::from_name(text).is_some() {
                text.len()
            } else {
                0
            };
            return fail(offset, DigestRule::Format);
        };
        let Some(algorithm) = Algorithm::from_name(name) else {
            return fail(0, DigestRule::Algorithm);
        };
        let start = name.len() + 1;
        for (at, byte) in hex.bytes().enumerate() {
            if !matches!(byte, b'0'..=b'9' | b'a'..=b'f') {
                return fail(start + at, DigestRule::Character);
            }
            if at == algorithm.hex_len() {
                return fail(start + at, DigestRule::Length);
            }
        }
        if hex.len() < algorithm.hex_len() {
            return fail(text.len(), DigestRule::Length);
        }
        Ok(Self {
            text: String::from(text),
            algorithm,
        })
    }

    /// The SHA-256 digest of `bytes`, the algorithm used for everything this project makes.
    pub fn sha256(bytes: &[u8]) -> Self {
        Self::of(Algorithm::Sha256, bytes)
    }

    /// The digest of `bytes`.
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    /// The algorithm.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The digits, without the algorithm.
    pub fn hex(&self) -> &str {
        &self.text[self.algorithm.name().len() + 1..]
    }

    /// The first twelve digits, as `docker images` shows an id.
    pub fn short(&self) -> &str {
        &self.hex()[..12]
    }

    /// The whole text, `sha256:…`.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    fn from_raw(algorithm: Algorithm, raw: &[u8]) -> Self {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let name = algorithm.name();
        let mut text = String::with_capacity(name.len() + 1 + raw.len() * 2);
        text.push_str(name);
        text.push(':');
        for byte in raw {
            text.push(char::from(HEX[usize::from(byte >> 4)]));
            text.push(char::from(HEX[usize::from(byte & 15)]));
        }
        Self { text, algorithm }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        Self::parse(text)
    }
}

impl AsRef<str> for Digest {
    fn as_ref(&self) -> &str {
        &self.text
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(D::Error::custom)
    }
}

/// Computes a digest piece by piece.
#[derive(Clone)]
pub struct Hasher(State);

#[derive(Clone)]
enum State {
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
}

impl Hasher {
    /// A hasher that has seen nothing.
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => State::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => State::Sha512(sha2::Sha512::new()),
        })
    }

    /// Takes in the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(state) => state.update(bytes),
            State::Sha512(state) => state.update(bytes),
        }
    }

    /// The digest of everything taken in.
    pub fn finish(self) -> Digest {
        match self.0 {
            State::Sha256(state) => Digest::from_raw(Algorithm::Sha256, &state.finalize()),
            State::Sha512(state) => Digest::from_raw(Algorithm::Sha512, &state.finalize()),
        }
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let algorithm = match self.0 {
            State::Sha256(_) => Algorithm::Sha256,
            State::Sha512(_) => Algorithm::Sha512,
        };
        write!(f, "Hasher({algorithm})")
    }
}

#[cfg(test)]
mod tests {
    use alloc::format;
    use alloc::string::ToString as _;

    use proptest::prelude::*;

    use super::*;

    // FIPS 180-4 example values for "abc" and the empty message.
    const ABC_256: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    const EMPTY_256: &str =
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const ABC_512: &str = "sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
                           2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f";

    #[test]
    fn known_values() {
        assert_eq!(Digest::sha256(b"abc").as_str(), ABC_256);
        assert_eq!(Digest::sha256(b"").as_str(), EMPTY_256);
        assert_eq!(Digest::of(Algorithm::Sha512, b"abc").as_str(), ABC_512);
    }

    #[test]
    fn parts() {
        let digest = Digest::parse(ABC_512).unwrap();
        assert_eq!(digest.algorithm(), Algorithm::Sha512);
        assert_eq!(digest.hex(), &ABC_512[7..]);
        assert_eq!(digest.short(), "ddaf35a19361");
        assert_eq!(digest.to_string(), ABC_512);
    }

    #[test]
    fn errors_say_where_and_why() {
        let upper = ABC_256.to_uppercase().replace("SHA", "sha");
        let long = format!("{ABC_256}0");
        let table: &[(&str, usize, DigestRule)] = &[
            ("", 0, DigestRule::Format),
            ("sha256", 6, DigestRule::Format),
            ("abc", 0, DigestRule::Format),
            (":abc", 0, DigestRule::Algorithm),
            (
                "md5:d41d8cd98f00b204e9800998ecf8427e",
                0,
                DigestRule::Algorithm,
            ),
            ("SHA256:00", 0, DigestRule::Algorithm),
            ("sha256:", 7, DigestRule::Length),
            ("sha256:00", 9, DigestRule::Length),
            ("sha256:0g", 8, DigestRule::Character),
            ("sha256:0é", 8, DigestRule::Character),
            (&upper, 7, DigestRule::Character),
            (&long, 71, DigestRule::Length),
            (&ABC_256[..70], 70, DigestRule::Length),
        ];
        for (text, offset, rule) in table {
            let error = Digest::parse(text).unwrap_err();
            assert_eq!((error.offset, error.rule), (*offset, *rule), "{text:?}");
        }
        assert_eq!(
            Digest::parse("sha256:0").unwrap_err().to_string(),
            "a sha256 digest has 64 hexadecimal digits, a sha512 digest 128 (at byte 8)"
        );
    }

    #[test]
    fn json_is_checked() {
        let digest: Digest = serde_json::from_str(&format!("\"{ABC_256}\"")).unwrap();
        assert_eq!(
            serde_json::to_string(&digest).unwrap(),
            format!("\"{ABC_256}\"")
        );
        assert!(serde_json::from_str::<Digest>("\"sha256:../../etc/passwd\"").is_err());
    }

    proptest! {
        #[test]
        fn never_panics_and_points_inside(text in ".{0,200}") {
            if let Err(error) = Digest::parse(&text) {
                prop_assert!(text.is_char_boundary(error.offset));
            }
        }

        #[test]
        fn round_trip(bytes in prop::collection::vec(any::<u8>(), 0..200), long: bool) {
            let algorithm = if long { Algorithm::Sha512 } else { Algorithm::Sha256 };
            let digest = Digest::of(algorithm, &bytes);
            prop_assert_eq!(&Digest::parse(digest.as_str()).unwrap(), &digest);
        }

        #[test]
        fn pieces_make_no_difference(bytes in prop::collection::vec(any::<u8>(), 0..500), cut in 0usize..500) {
            let cut = cut.min(bytes.len());
            let mut hasher = Hasher::new(Algorithm::Sha256);
            hasher.update(&bytes[..cut]);
            hasher.update(&bytes[cut..]);
            prop_assert_eq!(hasher.finish(), Digest::sha256(&bytes));
        }
    }
}
