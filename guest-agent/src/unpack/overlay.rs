//! What overlayfs reads in a lower directory: whiteouts and opaque directories.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{self, FileType, Mode, Stat, XattrFlags};
use rustix::io::Result;

/// Which extended attributes carry the marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marks {
    /// `trusted.overlay.*`, for an overlay mounted by the privileged.
    Trusted,
    /// `user.overlay.*`, for an overlay mounted with `userxattr`.
    User,
}

impl Marks {
    fn opaque(self) -> &'static str {
        match self {
            Self::Trusted => "trusted.overlay.opaque",
            Self::User => "user.overlay.opaque",
        }
    }

    /// Marks `directory` as hiding all that lower layers have in it.
    pub fn set_opaque(self, directory: impl AsFd) -> Result<()> {
        fs::fsetxattr(directory, self.opaque(), b"y", XattrFlags::empty())
    }

    /// Whether `directory` has the mark.
    pub fn is_opaque(self, directory: impl AsFd) -> bool {
        let mut value = [0u8; 2];
        fs::fgetxattr(directory, self.opaque(), value.as_mut_slice())
            .is_ok_and(|n| value[..n] == *b"y")
    }
}

/// Whether `stat` is that of a whiteout: the character device 0/0.
pub fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Makes the whiteout of `name`. Linux lets anyone make this one device (since 5.8).
pub fn make_whiteout(parent: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    fs::mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), 0)
}
