//! Which acceleration a machine starts with, on a computer whose `/dev/kvm` opens and runs no guest,
//! and on one without it; and what is remembered of it. The emulator is the real one, behind a program
//! that notes what it is asked for and gets nowhere with the processor's help.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use vdkr_tests::namespaces::as_root;
use vdkr_tests::process::{Ran, run_within, tool};
use vdkr_tests::vm::{PATIENCE, User};

/// `/dev` with what is there already but with a `kvm` of the test's own, which opens, or with none;
/// then the command.
const OWN_DEVICES: &str = "dev=$1 kvm=$2; shift 2; \
    mkdir -p \"$dev\" && mount -t tmpfs tmpfs \"$dev\" && mkdir \"$dev/.real\" \
    && mount --rbind /dev \"$dev/.real\" || exit 99; \
    for name in /dev/*; do ln -s \"/dev/.real/${name##*/}\" \"$dev/\" || exit 99; done; \
    rm -f \"$dev/kvm\"; test \"$kvm\" = none || : >\"$dev/kvm\" || exit 99; \
    mount --rbind \"$dev\" /dev || exit 99; exec \"$@\"";

/// The processor helps guests of its own architecture alone.
const ARCH: &str = std::env::consts::ARCH;

const HANGS: &str = "exec sleep 1000";

fn emulator() -> String {
    format!("qemu-system-{ARCH}")
}

/// A user whose emulator is ours.
struct Place {
    user: User,
}

impl Place {
    /// What the emulator does where the processor is to help, and where it is to emulate.
    fn new(helped: &str, emulating: &str) -> Self {
        let user = User::new(ARCH);
        fs::create_dir(user.home().join("bin")).unwrap();
        let place = Self { user };
        place.emulator(helped, emulating);
        place
    }

    fn emulator(&self, helped: &str, emulating: &str) {
        let tried = self.user.home().join("tried");
        let script = format!(
            "#!/bin/sh\ncase \"$*\" in\n*'-accel kvm'*) echo kvm >>{0}; {helped};;\n\
             *'-accel '*) echo tcg >>{0};;\nesac\n{emulating}\n",
            tried.display()
        );
        let program = self.user.home().join("bin").join(emulator());
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// The real emulator.
    fn real() -> String {
        let real = tool(&emulator());
        format!("exec {} \"$@\"", real.get_program().display())
    }

    /// The real emulator with a guest that never gets to its first instruction.
    fn stuck() -> String {
        let real = tool(&emulator());
        format!(
            "n=$#; while test $n != 0; do word=$1; shift; n=$((n - 1)); \
             case $word in kvm) word=tcg;; host) word=max;; esac; set -- \"$@\" \"$word\"; done; \
             exec {} -S \"$@\"",
            real.get_program().display()
        )
    }

    fn vdkr(&self, kvm: &str, args: &[&str]) -> Ran {
        let mut plain = self.user.command();
        plain.args(args);
        let mut command: Command = as_root();
        command
            .args(["sh", "-c", OWN_DEVICES, "sh"])
            .arg(self.user.home().join("dev"))
            .args([OsStr::new(kvm), plain.get_program()])
            .args(plain.get_args());
        for (name, value) in plain.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let own = [self.user.home().join("bin")];
        let path = std::env::join_paths(own.into_iter().chain(std::env::split_paths(&path)));
        run_within(command.env("PATH", path.unwrap()), b"", PATIENCE)
    }

    /// What the emulator was asked for since the last look, one word for each time.
    fn tried(&self) -> Vec<String> {
        let file = self.user.home().join("tried");
        let text = fs::read_to_string(&file).unwrap_or_default();
        let _ = fs::remove_file(file);
        text.lines().map(str::to_owned).collect()
    }

    fn verdicts(&self) -> PathBuf {
        self.user.home().join(".cache/vdkr/acceleration.json")
    }

    /// What was found to work, newest first.
    fn remembered(&self) -> Vec<String> {
        let text = fs::read(self.verdicts()).expect("what was proved");
        let verdicts: Value = serde_json::from_slice(&text).unwrap();
        let verdicts = verdicts.as_array().unwrap().iter();
        let works = verdicts.map(|verdict| verdict["works"].as_str().unwrap().to_owned());
        works.collect()
    }
}

/// How often the processor's help was tried; emulation must have come behind it.
#[track_caller]
fn trials(tried: &[String]) -> usize {
    assert_eq!(tried.last().map(String::as_str), Some("tcg"), "{tried:?}");
    let trials = tried.iter().filter(|word| *word == "kvm").count();
    let first = tried.iter().take_while(|word| *word == "kvm").count();
    assert_eq!(trials, first, "emulation was tried before: {tried:?}");
    trials
}

#[test]
fn a_guest_that_gets_nowhere_under_kvm_is_tried_once() {
    let place = Place::new(&Place::stuck(), &Place::real());
    let first = place.vdkr("opens", &["images"]).expect(0);
    assert!(
        first
            .stderr
            .contains("the guest does not run under kvm (no sign of life in"),
        "{}",
        first.stderr
    );
    assert!(first.stderr.contains("using emulation"), "{}", first.stderr);
    assert_eq!(trials(&place.tried()), 1);
    assert_eq!(place.remembered(), ["tcg"]);

    // The next start knows.
    let second = place.vdkr("opens", &["images"]).expect(0);
    assert!(!second.stderr.contains("kvm"), "{}", second.stderr);
    assert_eq!(trials(&place.tried()), 0);

    // Who insists gets an error, which is no verdict.
    let insisted = place.vdkr("opens", &["--accel", "kvm", "images"]).expect(3);
    assert!(
        insisted
            .stderr
            .contains("the guest does not run under kvm: no sign of life in")
            && insisted.stderr.contains("use --accel auto or tcg"),
        "{}",
        insisted.stderr
    );
    assert_eq!(place.tried(), ["kvm"]);
    assert_eq!(place.remembered(), ["tcg"]);

    // Another emulator may do better. This one does not even answer, which is no reason to give up.
    place.emulator(HANGS, &Place::real());
    let other = place.vdkr("opens", &["images"]).expect(0);
    assert!(other.stderr.contains("using emulation"), "{}", other.stderr);
    assert_eq!(trials(&place.tried()), 1);
    assert_eq!(place.remembered(), ["tcg", "tcg"]);
}

#[test]
fn without_a_device_nothing_is_tried_and_nothing_proved() {
    let place = Place::new(HANGS, &Place::real());
    let ran = place.vdkr("none", &["images"]).expect(0);
    assert!(!ran.stderr.contains("kvm"), "{}", ran.stderr);
    assert_eq!(trials(&place.tried()), 0);
    assert!(!place.verdicts().exists());
    let insisted = place.vdkr("none", &["--accel", "kvm", "images"]).expect(1);
    assert!(
        insisted
            .stderr
            .contains("cannot open /dev/kvm: No such file"),
        "{}",
        insisted.stderr
    );
    assert_eq!(place.tried(), [""; 0]);
}

#[test]
fn a_guest_that_runs_in_no_way_proves_nothing_about_acceleration() {
    let place = Place::new(HANGS, "exit 9");
    for _ in 0..2 {
        let ran = place.vdkr("opens", &["--stateless", "images"]).expect(3);
        assert!(ran.stderr.contains("no sign of life"), "{}", ran.stderr);
        assert!(ran.stderr.contains("ended with status 9"), "{}", ran.stderr);
        assert_eq!(trials(&place.tried()), 1);
        assert!(!place.verdicts().exists());
    }
}
