//! The guest's processors: of which model, and how many.

use std::{fmt, str::FromStr};

use super::{arch::Arch, qemu::Accel};

/// Longest word for a model, in bytes.
const MAX_WORD: usize = 512;
/// Most processors that a machine can have.
pub const MAX_CPUS: u32 = 64;
/// Most processors that the Arm board's ordinary interrupt controller serves.
pub const MAX_CPUS_GIC2: u32 = 8;

/// The model that the user wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CpuWish {
    /// The one that is the quickest here.
    #[default]
    Auto,
    /// What is given to the emulator: a model, and features that it gains or loses.
    Only(String),
}

impl CpuWish {
    /// The emulator's word for a machine of this kind.
    ///
    /// Never `max` by itself under emulation: its fast string instructions and pointer
    /// authentication are what an emulator is slowest at.
    pub fn model(&self, accel: Accel, arch: Arch) -> &str {
        match (self, accel, arch) {
            (Self::Only(word), ..) => word,
            (Self::Auto, Accel::Kvm, _) => "host",
            (Self::Auto, Accel::Tcg, Arch::X86_64) => "qemu64",
            (Self::Auto, Accel::Tcg, Arch::Aarch64) => "cortex-a57",
        }
    }
}

impl fmt::Display for CpuWish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Only(word) => word,
        })
    }
}

/// The word is no model of a processor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{word:?} is not a processor: {reason}; write auto, or what the emulator's -cpu takes, such as \
     max,-erms"
)]
pub struct CpuError {
    word: String,
    reason: &'static str,
}

impl FromStr for CpuWish {
    type Err = CpuError;

    fn from_str(word: &str) -> Result<Self, CpuError> {
        if word == "auto" {
            return Ok(Self::Auto);
        }
        let wrong = |reason| {
            Err(CpuError {
                word: word.chars().take(80).collect(),
                reason,
            })
        };
        if word.len() > MAX_WORD {
            return wrong("it is too long");
        }
        let mut parts = word.split(',');
        let model = parts.next().unwrap_or_default();
        if matches!(model, "help" | "?") {
            return wrong("the emulator lists its models by itself: qemu-system-ARCH -cpu help");
        }
        if model.parse::<u8>().is_ok() {
            return wrong("how many there are is said by --cpus");
        }
        let is_name = |text: &str| {
            text.starts_with(|c: char| c.is_ascii_alphanumeric())
                && text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        };
        if !is_name(model) {
            return wrong("the model's name has letters, digits, '-', '_' and '.'");
        }
        for part in parts {
            let fits = match (part.strip_prefix(['+', '-']), part.split_once('=')) {
                (Some(feature), None) => is_name(feature),
                (None, Some((feature, value))) => is_name(feature) && is_name(value),
                _ => false,
            };
            if !fits {
                return wrong("a feature is written +NAME, -NAME or NAME=VALUE");
            }
        }
        Ok(Self::Only(word.to_owned()))
    }
}

/// Reads how many processors a machine shall have.
pub fn parse_cpus(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(number @ 1..=MAX_CPUS) => Ok(number),
        _ => Err(format!(
            "{text:?} is not a number of processors from 1 to {MAX_CPUS}"
        )),
    }
}

/// What helps a program that died of an instruction which this model does not have.
pub fn advice(model: &str) -> Option<String> {
    let more = match model {
        "qemu64" => "max,-erms",
        "cortex-a57" => "max,pauth=off",
        _ => return None,
    };
    Some(format!(
        "status 132 means an illegal instruction: a program may be made for newer processors than \
         the machine's, {model}; start the machine with --cpu {more} (one that is running: vdkr \
         --cpu {more} memres restart), or for good: vdkr vconfig cpu {more}"
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn only(word: &str) -> CpuWish {
        CpuWish::Only(word.to_owned())
    }

    #[test]
    fn words_of_the_emulator() {
        assert_eq!("auto".parse(), Ok(CpuWish::Auto));
        for word in [
            "max",
            "max,-erms",
            "Nehalem-v1,+avx2,vendor=GenuineIntel",
            "cortex-a72,pauth-impdef=on",
            "486",
            "qemu64,+ssse3,+sse4.1",
        ] {
            assert_eq!(word.parse(), Ok(only(word)));
            assert_eq!(only(word).to_string(), word);
        }
        for (word, reason) in [
            ("", "name"),
            ("-erms", "name"),
            ("max ,x", "name"),
            ("max\n", "name"),
            ("2", "--cpus"),
            ("help", "-cpu help"),
            ("max,", "feature"),
            ("max,erms", "feature"),
            ("max,-", "feature"),
            ("max,+a=b", "feature"),
            ("max,a=", "feature"),
            ("max,a=b=c", "feature"),
        ] {
            let error = word.parse::<CpuWish>().unwrap_err().to_string();
            assert!(error.contains(reason), "{word:?}: {error}");
        }
        let long = format!("max{}", ",+avx2".repeat(200));
        let error = long.parse::<CpuWish>().unwrap_err().to_string();
        assert!(error.contains("too long") && error.len() < 300, "{error}");
    }

    #[test]
    fn the_quickest_is_chosen() {
        let auto = CpuWish::Auto;
        assert_eq!(auto.model(Accel::Kvm, Arch::X86_64), "host");
        assert_eq!(auto.model(Accel::Tcg, Arch::X86_64), "qemu64");
        assert_eq!(auto.model(Accel::Tcg, Arch::Aarch64), "cortex-a57");
        assert_eq!(only("max").model(Accel::Tcg, Arch::Aarch64), "max");
    }

    #[test]
    fn numbers() {
        assert_eq!(parse_cpus("1"), Ok(1));
        assert_eq!(parse_cpus("64"), Ok(64));
        for text in ["", "0", "65", "-1", "1.5", "two", "4294967297"] {
            assert!(parse_cpus(text).is_err(), "{text}");
        }
    }

    #[test]
    fn only_the_smallest_models_are_to_blame() {
        for (model, word) in [("qemu64", "max,-erms"), ("cortex-a57", "max,pauth=off")] {
            assert!(advice(model).unwrap().contains(word));
            assert!(word.parse::<CpuWish>().is_ok());
        }
        assert_eq!(advice("host"), None);
        assert_eq!(advice("max,-erms"), None);
    }

    proptest! {
        #[test]
        fn what_is_taken_is_one_harmless_word(word in "(?s).{0,40}|[a-z0-9,+=-]{0,40}") {
            match word.parse::<CpuWish>() {
                Ok(CpuWish::Auto) => prop_assert_eq!(word, "auto"),
                Ok(CpuWish::Only(taken)) => {
                    prop_assert_eq!(&taken, &word);
                    prop_assert!(!taken.starts_with('-') && !taken.is_empty());
                    prop_assert!(taken.bytes().all(|b| b.is_ascii_graphic()));
                }
                Err(_) => {}
            }
        }
    }
}
