//! Architectures that a virtual machine can have.

use std::{fmt, str::FromStr};

/// The architecture of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Arch {
    /// 64-bit x86.
    X86_64,
    /// 64-bit Arm.
    Aarch64,
}

impl Arch {
    /// All of them, in the order in which they are listed to users.
    pub const ALL: [Self; 2] = [Self::X86_64, Self::Aarch64];

    /// As OCI platforms name it.
    pub fn oci_name(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }

    /// The name in paths and options, the same as `uname -m` gives.
    pub fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// The architecture this program was built for, when a virtual machine can have it.
    pub fn host() -> Option<Self> {
        std::env::consts::ARCH.parse().ok()
    }

    /// The architecture in a program name such as `vdkr-aarch64`.
    pub fn of_program(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|arch| {
            name.strip_suffix(arch.name())
                .is_some_and(|rest| rest.ends_with('-'))
        })
    }

    /// Name of the emulator's program.
    pub fn qemu_program(self) -> &'static str {
        match self {
            Self::X86_64 => "qemu-system-x86_64",
            Self::Aarch64 => "qemu-system-aarch64",
        }
    }

    /// The Debian package that brings the emulator.
    pub fn qemu_package(self) -> &'static str {
        match self {
            Self::X86_64 => "qemu-system-x86",
            Self::Aarch64 => "qemu-system-arm",
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The word is no architecture that a virtual machine can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown architecture {0:?}; it is one of x86_64, aarch64")]
pub struct UnknownArch(String);

impl FromStr for Arch {
    type Err = UnknownArch;

    fn from_str(word: &str) -> Result<Self, UnknownArch> {
        match word {
            "x86_64" | "x86-64" | "amd64" => Ok(Self::X86_64),
            "aarch64" | "arm64" => Ok(Self::Aarch64),
            other => Err(UnknownArch(other.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Arch;

    #[test]
    fn words_of_both_worlds() {
        for (word, arch) in [
            ("x86_64", Arch::X86_64),
            ("amd64", Arch::X86_64),
            ("aarch64", Arch::Aarch64),
            ("arm64", Arch::Aarch64),
        ] {
            assert_eq!(word.parse(), Ok(arch));
        }
        let error = "riscv64".parse::<Arch>().unwrap_err();
        assert!(error.to_string().contains("x86_64, aarch64"), "{error}");
    }

    #[test]
    fn program_names() {
        assert_eq!(Arch::of_program("vdkr-aarch64"), Some(Arch::Aarch64));
        assert_eq!(Arch::of_program("vdkr-x86_64"), Some(Arch::X86_64));
        assert_eq!(Arch::of_program("vdkr"), None);
        assert_eq!(Arch::of_program("vdkraarch64"), None);
    }
}
