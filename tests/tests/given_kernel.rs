//! A machine of a kernel and an initramfs that the user names, with nothing beside them that says what
//! they are: the board has to be guessed, and disks come at the start or not at all.

use serde_json::Value;
use vdkr_tests::fixtures::deploy_dir;
use vdkr_tests::layout::digest;
use vdkr_tests::peers::skopeo_raw;
use vdkr_tests::process::Ran;
use vdkr_tests::registry::Registry;
use vdkr_tests::vm::{User, image_dir};

/// A user with copies of some of the image's files, and a registry with images for them.
struct Place {
    registry: Registry,
    user: User,
    kernel: String,
    initrd: String,
}

impl Place {
    fn new(arch: &'static str, kernel: &str) -> Self {
        let registry = Registry::start();
        let deploy = deploy_dir();
        let push = ["push", "--deploy-dir-images", deploy.to_str().unwrap()];
        registry.run(push).expect(0);
        let user = User::new(arch);
        let copy = |name: &str, as_name: &str| {
            let copy = user.home().join(as_name);
            std::fs::copy(image_dir(arch).join(name), &copy).unwrap();
            copy.to_str().unwrap().to_owned()
        };
        let (kernel, initrd) = (
            copy(kernel, "given-kernel"),
            copy("initramfs", "given-initrd"),
        );
        Self {
            registry,
            user,
            kernel,
            initrd,
        }
    }

    fn prefix(&self) -> String {
        format!("{}/yocto", self.registry.host())
    }

    /// `vdkr` with kernel and initramfs of the user's, under emulation.
    fn given(&self, args: &[&str]) -> Ran {
        let given = ["--kernel", &self.kernel, "--initrd", &self.initrd];
        let prefix = self.prefix();
        let others = ["--accel", "tcg", "--registry", &*prefix];
        self.user.run([&given[..], &others, args].concat())
    }
}

#[test]
fn a_bzimage_boots_pulls_and_runs() {
    let place = Place::new("x86_64", "bzImage");
    let ran = place
        .given(&["run", "--rm", "container-base", "uname", "-srm"])
        .expect(0);
    let version = std::fs::read(image_dir("x86_64").join("vm.json")).unwrap();
    let version: Value = serde_json::from_slice(&version).unwrap();
    let version = version["kernel_version"].as_str().unwrap();
    assert_eq!(ran.text(), format!("Linux {version} x86_64\n"));

    // What was pulled is on the state disk, for the next machine too.
    place.given(&["memres", "start"]).expect(0);
    let status = place.user.run(["memres", "status", "--json"]).expect(0);
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["monitor"]["kernel"], place.kernel.as_str());
    assert_eq!(status["monitor"]["initrd"], place.initrd.as_str());
    // Not every such kernel finds its devices on a microvm.
    assert_eq!(status["monitor"]["machine"], "q35");
    let vdkr = |args: &[&str]| place.user.run(args.iter().copied());
    let run = ["run", "--rm", "--pull", "never", "container-base"];
    let said =
        vdkr(&[&run[..], &["sh", "-c", "echo out; echo err >&2; exit 7"]].concat()).expect(7);
    assert_eq!((&*said.text(), &*said.stderr), ("out\n", "err\n"));

    // Whole images come out of it and go in again, without a disk of their own.
    let archive = place.user.home().join("saved.tar");
    let archive = archive.to_str().unwrap();
    vdkr(&["save", "-o", archive, "container-base"]).expect(0);
    vdkr(&["rmi", "container-base"]).expect(0);
    vdkr(&[&run[..], &["true"]].concat()).expect(125);
    vdkr(&["load", "-i", archive]).expect(0);
    vdkr(&[&run[..], &["true"]].concat()).expect(0);
    // Where layers are to be pulled is no reason to fail.
    let prefix = place.prefix();
    let pull = ["--pull-in", "host", "--registry", &prefix, "pull"];
    let pulled = vdkr(&[&pull[..], &["many-layers"]].concat()).expect(0);
    let stored = format!(
        "10.0.2.2:{}/yocto/many-layers:latest",
        place.registry.port()
    );
    assert_eq!(pulled.text(), format!("{stored}\n"));
    let raw = skopeo_raw(&format!("docker://{prefix}/many-layers:latest"));
    let inspected = vdkr(&["inspect", "many-layers"]).expect(0).text();
    assert!(inspected.contains(&digest(&raw)), "{inspected}");
    vdkr(&["memres", "stop"]).expect(0);
}

#[test]
fn what_is_given_alone_goes_with_the_rest_of_the_image() {
    let place = Place::new("x86_64", "kernel");
    let run = |given: &[&str]| {
        let prefix = place.prefix();
        let all = [
            &["--accel", "tcg", "--registry", &*prefix][..],
            given,
            &["run", "--rm", "container-base", "echo", "ran"],
        ];
        place.user.run(all.concat())
    };
    for given in [
        &["--kernel", &*place.kernel][..],
        &["--initrd", &place.initrd],
    ] {
        assert_eq!(run(given).expect(0).text(), "ran\n", "{given:?}");
    }
    for (given, words) in [
        (
            ["--kernel", &*place.initrd],
            "is not a kernel that an x86_64",
        ),
        (["--kernel", "/nowhere"], "cannot read /nowhere"),
        (["--initrd", "/nowhere"], "cannot read /nowhere"),
    ] {
        let refused = run(&given).expect(125);
        assert!(refused.stderr.contains(words), "{}", refused.stderr);
    }
    // A machine whose initramfs is none says so, and shows the kernel's last words.
    let none = place.user.home().join("none");
    std::fs::write(&none, "no archive").unwrap();
    let broken = run(&["--initrd", none.to_str().unwrap()]).expect(125);
    for words in ["did not start", "last lines of its console", "panic"] {
        assert!(broken.stderr.contains(words), "{}", broken.stderr);
    }
    assert!(place.user.state_dir().join("console.log").is_file());
}

#[test]
fn an_image_of_arm_boots_and_runs() {
    let place = Place::new("aarch64", "kernel");
    let ran = place
        .given(&["run", "--rm", "container-base", "uname", "-m"])
        .expect(0);
    assert_eq!(ran.text(), "aarch64\n");
}
