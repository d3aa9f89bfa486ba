//! Images and archives of containers, the list of what they have changed, and the end of those that
//! do not run, in a real VM: for images that the host pulled and for those that the machine pulled.

use std::{fs, process::Command};

use vdkr_tests::fixtures::layout;
use vdkr_tests::peers::skopeo;
use vdkr_tests::process::{Ran, run};
use vdkr_tests::registry::Registry;
use vdkr_tests::vm::User;

/// What a container of `base` is made to change.
const CHANGE: &str = "set -e
    mkdir -p /new/deep && echo hello >/new/deep/file && ln /new/deep/file /new/again
    ln -s deep/file /new/link && mkfifo /new/queue && chmod 4755 /new/deep/file
    chown 123:456 /new/deep
    echo changed >>/etc/passwd
    rm /etc/group
    rm -r /var && mkdir /var && echo only >/var/only";

#[test]
fn an_image_of_a_container_has_its_changes() {
    let registry = Registry::start();
    let image = layout("qemux86-64", "container-base-latest-oci");
    registry.run(["push", image.to_str().unwrap()]).expect(0);
    let user = User::new("x86_64");
    user.run(["vconfig", "accel", "tcg"]).expect(0);
    user.run(["memres", "start"]).expect(0);
    let prefix = format!("{}/yocto", registry.host());
    for place in ["host", "guest"] {
        let pull = [
            "--registry",
            &prefix,
            "--pull-in",
            place,
            "pull",
            "container-base",
        ];
        user.run(pull).expect(0);
        user.run(["tag", "container-base", "base"]).expect(0);
        eprintln!("pulled in {place}");
        changes(&user);
        user.run(["rmi", "-f", "base", "container-base"]).expect(0);
        user.run(["image", "prune", "-a", "-f"]).expect(0);
    }
    user.run(["memres", "stop"]).expect(0);
}

/// Standard output of a container of `image` that runs a script.
fn sh(user: &User, image: &str, script: &str) -> String {
    user.run(["run", "--rm", image, "sh", "-c", script])
        .expect(0)
        .text()
}

fn lines(ran: &Ran) -> Vec<String> {
    ran.text().lines().map(str::to_owned).collect()
}

fn changes(user: &User) {
    // The fixture has what is changed here.
    sh(user, "base", "test -f /etc/group && test -d /var/tmp");
    let begin = ["run", "--name", "made", "-e", "A=b", "-w", "/tmp", "base"];
    user.run([&begin[..], &["sh", "-c", CHANGE]].concat())
        .expect(0);

    // What has changed, of a container that has ended.
    let found = lines(&user.run(["diff", "made"]).expect(0));
    for line in [
        "C /etc",
        "C /etc/passwd",
        "D /etc/group",
        "A /var/only",
        "A /new",
        "A /new/deep/file",
        "A /new/queue",
    ] {
        assert!(found.iter().any(|found| found == line), "{line}: {found:?}");
    }
    for absent in ["/etc/hosts", "/etc/resolv.conf", "/proc", "/dev", "/bin"] {
        let is_told = found.iter().any(|line| line.ends_with(absent));
        assert!(!is_told, "{absent}: {found:?}");
    }

    // The image of it, run as it was run.
    let change = "CMD [\"sh\", \"-c\", \"echo $A; pwd\"]";
    let commit = [
        "commit", "-a", "me", "-m", "why", "-c", change, "made", "new:1",
    ];
    let id = user.run(commit).expect(0).text();
    assert!(id.starts_with("sha256:"), "{id}");
    let default = user.run(["run", "--rm", "new:1"]).expect(0).text();
    assert_eq!(default, "b\n/tmp\n");
    let look = "cat /new/link; stat -c '%a %u:%g %h' /new/deep/file /new/deep | tr '\\n' ' '; \
                test -p /new/queue; test ! -e /etc/group; ls /var; tail -n1 /etc/passwd";
    let seen = sh(user, "new:1", look);
    let mut parts = seen.lines();
    assert_eq!(parts.next(), Some("hello"));
    let stat = parts.next().unwrap();
    assert!(stat.starts_with("4755 0:0 2 755 123:456 "), "{stat}");
    assert!(stat.ends_with("only"), "{stat}");
    assert_eq!(parts.next(), Some("changed"));
    let history = user
        .run(["history", "--no-trunc", "new:1"])
        .expect(0)
        .text();
    assert!(history.contains("why"), "{history}");
    // The image that it came of is as it was.
    sh(user, "base", "test -f /etc/group && test ! -e /new");

    // Other programs read it.
    let archive = user.home().join("new.tar");
    let file = archive.to_str().unwrap();
    user.run(["save", "-o", file, "new:1"]).expect(0);
    let copied = user.home().join("copied");
    let to = format!("oci:{}:1", copied.display());
    let mut copy = skopeo();
    copy.args(["copy", "-q", &format!("docker-archive:{file}"), &to]);
    run(&mut copy).expect(0);
    fs::remove_dir_all(copied).unwrap();

    // A container that runs goes on, and its mounts are not part of its archive.
    let share = user.home().join("share");
    fs::create_dir_all(&share).unwrap();
    fs::write(share.join("secret"), "x").unwrap();
    let volume = format!("{}:/data", share.display());
    let script = "echo 1 >/own; while :; do sleep 0.1; date >/beat; done";
    let begin = ["run", "-d", "--name", "live", "-v", &volume, "base"];
    user.run([&begin[..], &["sh", "-c", script]].concat())
        .expect(0);
    vdkr_tests::process::wait_until("the container's file", vdkr_tests::vm::PATIENCE, || {
        user.run(["exec", "live", "test", "-e", "/beat"]).code() == 0
    });
    user.run(["commit", "live", "living"]).expect(0);
    assert_eq!(sh(user, "living", "cat /own; ls /data"), "1\n");
    let state = ["inspect", "-f", "{{.State.Status}}", "live"];
    assert_eq!(user.run(state).expect(0).text().trim(), "running");
    let found = lines(&user.run(["diff", "live"]).expect(0));
    assert!(found.contains(&"A /own".to_owned()), "{found:?}");
    let exported = user.home().join("live.tar");
    let file = exported.to_str().unwrap();
    user.run(["export", "-o", file, "live"]).expect(0);
    let list = run_tar(&["tf", file]);
    for (name, is_there) in [
        ("own", true),
        ("bin/sh", true),
        ("data/", true),
        ("data/secret", false),
        ("proc/", true),
        ("proc/self", false),
    ] {
        assert_eq!(list.lines().any(|line| line == name), is_there, "{name}");
    }
    user.run(["export", "nobody"]).expect(5);
    user.run(["commit", "nobody"]).expect(5);
    user.run(["commit", "live", "Bad Name"]).expect(2);
    user.run(["import", file, "again"]).expect(0);
    assert_eq!(sh(user, "again", "cat /own"), "1\n");

    // The end of those that do not run.
    user.run(["create", "--name", "never", "base", "true"])
        .expect(0);
    let all = user.run(["ps", "-aq", "--no-trunc"]).expect(0);
    assert_eq!(lines(&all).len(), 3);
    user.run(["container", "prune"]).expect(2);
    let keep = ["container", "prune", "-f", "--filter", "until=24h"];
    assert_eq!(user.run(keep).expect(0).text(), "");
    let told = user.run(["system", "prune", "--dry-run"]).expect(0).text();
    assert!(
        told.starts_with("Containers that would be deleted:\n"),
        "{told}"
    );
    let told = user.run(["container", "prune", "-f"]).expect(0).text();
    assert!(told.starts_with("Deleted Containers:\n"), "{told}");
    let left = user.run(["container", "ls", "-a", "--format", "{{.Names}}"]);
    assert_eq!(left.expect(0).text(), "live\n");
    user.run(["container", "rm", "-f", "live"]).expect(0);
    user.run(["run", "base", "true"]).expect(0);
    let told = user
        .run(["system", "prune", "-f", "--volumes"])
        .expect(0)
        .text();
    assert!(told.starts_with("Deleted Containers:\n"), "{told}");
    assert_eq!(user.run(["ps", "-aq"]).expect(0).text(), "");
    user.run(["rmi", "-f", "new:1", "living", "again"])
        .expect(0);
}

fn run_tar(args: &[&str]) -> String {
    run(Command::new("tar").args(args)).expect(0).text()
}
