//! Names of members, made safe to resolve beneath a root, and what overlay conventions they carry.

use std::fmt;

/// Bytes of a whole path that the kernel takes (`PATH_MAX`, without the NUL).
const MAX_PATH: usize = 4095;
/// Bytes of one component (`NAME_MAX`).
const MAX_COMPONENT: usize = 255;

const WHITEOUT: &[u8] = b".wh.";
const AUFS: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Why a name is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// A `..` component.
    #[error("its name leads out of its directory (..)")]
    Parent,
    /// Longer than the kernel takes.
    #[error("its name is longer than 4095 bytes, or a part of it longer than 255")]
    Length,
    /// A NUL byte.
    #[error("its name has a NUL byte")]
    Nul,
    /// A whiteout of nothing, or something below a whiteout.
    #[error("it is a whiteout without a proper name")]
    Whiteout,
}

/// A path relative to a layer's root: no `..`, `.` or empty components, no leading slash. The
/// empty path is the root.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct LayerPath(Vec<u8>);

impl LayerPath {
    /// Normalises a name as archived. A leading slash is dropped, as docker and tar do: every name
    /// is relative to the layer's root.
    pub fn parse(name: &[u8]) -> Result<Self, NameError> {
        if name.contains(&0) {
            return Err(NameError::Nul);
        }
        let mut path = Vec::with_capacity(name.len().min(MAX_PATH));
        for component in name.split(|&byte| byte == b'/') {
            match component {
                b"" | b"." => continue,
                b".." => return Err(NameError::Parent),
                _ if component.len() > MAX_COMPONENT => return Err(NameError::Length),
                _ if path.len() + 1 + component.len() > MAX_PATH => return Err(NameError::Length),
                _ => {}
            }
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(component);
        }
        Ok(Self(path))
    }

    /// The bytes; empty for the root.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether this is the root itself.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Directory and last component; `None` for the root.
    pub fn split(&self) -> Option<(&[u8], &[u8])> {
        if self.is_root() {
            return None;
        }
        Some(match self.0.iter().rposition(|&byte| byte == b'/') {
            Some(slash) => (&self.0[..slash], &self.0[slash + 1..]),
            None => (b"", &self.0),
        })
    }

    /// How many components it has.
    pub fn depth(&self) -> usize {
        if self.is_root() {
            0
        } else {
            self.0.split(|&byte| byte == b'/').count()
        }
    }
}

/// What a member's name means in a layer (OCI image specification, layer, "Whiteouts").
#[derive(Debug, PartialEq, Eq)]
pub enum Meaning {
    /// A member to be made at this path.
    Member(LayerPath),
    /// This path of a lower layer is hidden.
    Whiteout(LayerPath),
    /// All that lower layers have in this directory is hidden.
    Opaque(LayerPath),
    /// Bookkeeping of the AUFS driver, of no meaning here.
    Ignored,
}

/// Reads the overlay conventions in a normalised path.
pub fn meaning(path: LayerPath) -> Result<Meaning, NameError> {
    let Some((parent, name)) = path.split() else {
        return Ok(Meaning::Member(path));
    };
    let first = path
        .0
        .split(|&byte| byte == b'/')
        .next()
        .unwrap_or_default();
    if first.starts_with(AUFS) && path.0 != OPAQUE {
        return Ok(Meaning::Ignored);
    }
    if parent
        .split(|&byte| byte == b'/')
        .any(|component| component.starts_with(WHITEOUT))
    {
        return Err(NameError::Whiteout);
    }
    if name == OPAQUE {
        return Ok(Meaning::Opaque(LayerPath(parent.to_vec())));
    }
    match name.strip_prefix(WHITEOUT) {
        None => Ok(Meaning::Member(path)),
        Some(b"" | b"." | b"..") => Err(NameError::Whiteout),
        Some(hidden) if hidden.starts_with(WHITEOUT) => Err(NameError::Whiteout),
        Some(hidden) => {
            let mut whole = parent.to_vec();
            if !whole.is_empty() {
                whole.push(b'/');
            }
            whole.extend_from_slice(hidden);
            Ok(Meaning::Whiteout(LayerPath(whole)))
        }
    }
}

impl fmt::Display for LayerPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.0.escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn path(text: &str) -> LayerPath {
        LayerPath(text.as_bytes().to_vec())
    }

    #[test]
    fn normalising() {
        for (name, want) in [
            ("./", ""),
            ("/", ""),
            (".", ""),
            ("a", "a"),
            ("./a//b/./c/", "a/b/c"),
            ("/etc/passwd", "etc/passwd"),
            ("new\nline", "new\nline"),
            ("...", "..."),
        ] {
            assert_eq!(LayerPath::parse(name.as_bytes()), Ok(path(want)));
        }
        assert_eq!(LayerPath::parse(b"../a"), Err(NameError::Parent));
        assert_eq!(LayerPath::parse(b"a/.."), Err(NameError::Parent));
        assert_eq!(LayerPath::parse(b"a\0b"), Err(NameError::Nul));
        assert_eq!(LayerPath::parse(&[b'a'; 256]), Err(NameError::Length));
        assert_eq!(
            LayerPath::parse(&b"a/".repeat(10_000)),
            Err(NameError::Length)
        );
        assert_eq!(LayerPath::parse(&b"a/".repeat(2048)).unwrap().depth(), 2048);
        assert_eq!(
            LayerPath::parse(&b"a/".repeat(2049)),
            Err(NameError::Length)
        );
    }

    #[test]
    fn overlay_names() {
        for (name, want) in [
            ("etc/.wh.passwd", Meaning::Whiteout(path("etc/passwd"))),
            (".wh.etc", Meaning::Whiteout(path("etc"))),
            ("etc/.wh..wh..opq", Meaning::Opaque(path("etc"))),
            (".wh..wh..opq", Meaning::Opaque(path(""))),
            (".wh..wh.plnk/12.34", Meaning::Ignored),
            (".wh..wh.aufs", Meaning::Ignored),
            ("etc/x.wh.y", Meaning::Member(path("etc/x.wh.y"))),
        ] {
            assert_eq!(meaning(path(name)), Ok(want), "{name}");
        }
        for name in [
            "a/.wh.",
            "a/.wh..",
            "a/.wh...",
            "a/.wh.b/c",
            "a/.wh..wh.b",
            "a/.wh..wh..opq/c",
        ] {
            assert_eq!(meaning(path(name)), Err(NameError::Whiteout), "{name}");
        }
    }

    proptest! {
        #[test]
        fn result_stays_beneath(name in proptest::collection::vec(
            prop_oneof![Just(b'/'), Just(b'.'), Just(b'a'), Just(b'w'), Just(b'h')], 0..40)
        ) {
            if let Ok(found) = LayerPath::parse(&name) {
                prop_assert!(!found.as_bytes().starts_with(b"/"));
                for part in found.as_bytes().split(|&byte| byte == b'/') {
                    prop_assert!(part != b".." && part != b".");
                    prop_assert!(found.is_root() || !part.is_empty());
                }
                prop_assert_eq!(LayerPath::parse(found.as_bytes()), Ok(found.clone()));
                let _ = meaning(found);
            }
        }
    }
}
