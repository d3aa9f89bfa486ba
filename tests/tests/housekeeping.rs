//! Names, removal, room and pushes of images that containers use, in one real VM.

use serde_json::Value;
use vdkr_tests::fixtures::layout;
use vdkr_tests::registry::Registry;
use vdkr_tests::vm::User;

const BASE: &str = "container-base-latest-oci";

fn text(user: &User, args: &[&str]) -> String {
    user.run(args.iter().copied()).expect(0).text()
}

/// The entries of the index that a tag is, by architecture.
fn entries(registry: &Registry, name: &str) -> Vec<(String, String)> {
    let raw = registry.run(["inspect", "--raw", name]).expect(0).text();
    let index: Value = serde_json::from_str(&raw).unwrap();
    let entries = index["manifests"].as_array().unwrap();
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    let mut entries: Vec<_> = entries
        .iter()
        .map(|entry| {
            (
                word(&entry["platform"]["architecture"]),
                word(&entry["digest"]),
            )
        })
        .collect();
    entries.sort();
    entries
}

#[test]
fn images_that_containers_use() {
    let registry = Registry::start();
    for machine in ["qemux86-64", "qemuarm64"] {
        let image = layout(machine, BASE);
        let push = ["push", image.to_str().unwrap(), "--tag", "1"];
        registry.run(push).expect(0);
    }
    let user = User::new("x86_64");
    let prefix = format!("{}/yocto", registry.host());
    user.run(["vconfig", "registry", &prefix]).expect(0);
    user.run(["--accel", "tcg", "memres", "start"]).expect(0);
    user.run(["pull", "container-base:1"]).expect(0);
    user.run(["tag", "container-base:1", "base"]).expect(0);

    names(&user);
    removal(&user);
    volumes_and_room(&user);
    pushed(&user, &registry);
}

fn names(user: &User) {
    let archive = user.home().join("saved.tar");
    let archive = archive.to_str().unwrap();
    let id = text(user, &["inspect", "-f", "{{.Id}}", "base"])
        .trim()
        .to_owned();
    // Under the registry before any other ending, for every command; without it nothing is guessed.
    user.run(["tag", "base", "h.example/other/container-base:1"])
        .expect(0);
    for args in [
        &["inspect", "-f", "{{.Id}}", "container-base:1"][..],
        &["history", "-q", "container-base:1"],
        &["tag", "container-base:1", "again"],
        &["rmi", "again"],
        &["save", "-o", archive, "container-base:1"],
        &["run", "--rm", "--pull", "never", "container-base:1", "true"],
        &["ps", "--filter", "ancestor=container-base:1"],
        &["images", "--filter", "before=container-base:1"],
    ] {
        let ran = user.run(args.iter().copied());
        assert_eq!(ran.code(), 0, "{args:?}: {ran:?}");
        let unsure = user.run([&["--no-registry"], args].concat());
        let guesses = args[0] == "rmi" || args[0] == "ps" || args[0] == "run";
        if !guesses {
            assert_eq!(unsure.code(), 2, "{args:?}: {unsure:?}");
            assert!(unsure.stderr.contains("h.example/other/"), "{unsure:?}");
        }
    }
    let unsure = user
        .run(["--no-registry", "rmi", "-f", "container-base:1"])
        .expect(2);
    assert!(
        unsure.stderr.contains("yocto/container-base:1"),
        "{unsure:?}"
    );
    let removed = text(user, &["rmi", "container-base:1"]);
    assert!(removed.contains("/yocto/container-base:1"), "{removed}");
    let removed = text(user, &["--no-registry", "rmi", "container-base:1"]);
    assert!(
        removed.contains("h.example/other/container-base:1"),
        "{removed}"
    );
    assert_eq!(
        text(user, &["inspect", "-f", "{{.Id}}", &id[7..15]]).trim(),
        id
    );
}

fn removal(user: &User) {
    let id = text(user, &["inspect", "-f", "{{.Id}}", "base"])
        .trim()
        .to_owned();
    let short = &id[7..19];
    user.run(["run", "-d", "--name", "box", "base", "sleep", "1000"])
        .expect(0);
    user.run(["rmi", "base"]).expect(1);
    for force in [&["rmi", "-f", short][..], &["rmi", "-f", &id]] {
        let refused = user.run(force.iter().copied()).expect(1);
        let words = format!("unable to delete {short} (cannot be forced) - image is being used by");
        assert!(refused.stderr.contains(&words), "{refused:?}");
    }
    let untagged = text(user, &["rmi", "-f", "base"]);
    assert_eq!(untagged, "Untagged: base:latest\n");
    // The container does not mind, now and later.
    user.run(["exec", "box", "true"]).expect(0);
    user.run(["stop", "-t", "0", "box"]).expect(0);
    let refused = user.run(["rmi", "-f", short]).expect(1);
    assert!(refused.stderr.contains("stopped container"), "{refused:?}");
    user.run(["memres", "restart"]).expect(0);
    user.run(["start", "box"]).expect(0);
    user.run(["exec", "box", "true"]).expect(0);
    user.run(["tag", short, "base"]).expect(0);
    // Of one that has ended the names go by the id too.
    user.run(["stop", "-t", "0", "box"]).expect(0);
    user.run(["rmi", short]).expect(1);
    assert_eq!(text(user, &["rmi", "-f", short]), "Untagged: base:latest\n");
    user.run(["start", "box"]).expect(0);
    user.run(["rm", "-f", "box"]).expect(0);
    let deleted = text(user, &["rmi", "-f", short]);
    assert!(deleted.contains(&format!("Deleted: {id}")), "{deleted}");
    user.run(["pull", "container-base:1"]).expect(0);
    user.run(["tag", "container-base:1", "base"]).expect(0);
}

fn volumes_and_room(user: &User) {
    let host = user.home().join("share");
    std::fs::create_dir(&host).unwrap();
    std::fs::write(host.join("file"), "of the host\n").unwrap();
    let bind = format!("{}:/host:ro", host.display());
    let fill =
        "head -c 3000000 /dev/zero >/data/big; head -c 2000000 /dev/zero >/own; echo in >/data/f";
    let run = [
        "run",
        "--name",
        "box",
        "-v",
        "data:/data",
        "-v",
        &bind,
        "base",
        "sh",
        "-c",
        fill,
    ];
    user.run(run).expect(0);
    let seen =
        "cat /data/f /host/file; echo new >/data/new && echo wrote; echo x >/host/x || echo ro";
    let from = ["run", "--rm", "--volumes-from"];
    let ran = user
        .run([&from[..], &["box", "base", "sh", "-c", seen]].concat())
        .expect(0);
    assert_eq!(ran.text(), "in\nof the host\nwrote\nro\n");
    let own = [
        "box:ro",
        "-v",
        "other:/data",
        "base",
        "sh",
        "-c",
        "ls /data; ls /host",
    ];
    assert_eq!(
        user.run([&from[..], &own].concat()).expect(0).text(),
        "file\n"
    );
    let sealed = ["box:ro", "base", "sh", "-c", "echo x >/data/x || echo ro"];
    assert_eq!(
        user.run([&from[..], &sealed].concat()).expect(0).text(),
        "ro\n"
    );
    let missing = user.run([&from[..], &["nothing", "base", "true"]].concat());
    assert!(
        missing
            .expect(125)
            .stderr
            .contains("no such container: nothing")
    );

    let lines = text(user, &["system", "df", "--format", "json"]);
    let row = |kind: &str| -> Value {
        let mut rows = lines
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        rows.find(|row| row["Type"] == kind)
            .unwrap_or_else(|| panic!("{lines}"))
    };
    assert_eq!(row("Containers")["TotalCount"], "1");
    assert!(
        row("Containers")["Size"].as_str().unwrap().starts_with('2'),
        "{lines}"
    );
    assert_eq!(
        row("Containers")["Size"],
        row("Containers")["Reclaimable"]
            .as_str()
            .unwrap()
            .split(' ')
            .next()
            .unwrap()
    );
    assert_eq!(row("Local Volumes")["Active"], "1");
    assert!(
        row("Local Volumes")["Size"]
            .as_str()
            .unwrap()
            .starts_with('3'),
        "{lines}"
    );
    assert_ne!(row("Layer Cache")["TotalCount"], "0");
    let detail = text(user, &["system", "df", "-v"]);
    let data = detail
        .lines()
        .find(|line| line.starts_with("data "))
        .unwrap();
    assert!(data.contains(" 1 ") && data.contains("3.0"), "{detail}");
    let object: Value =
        serde_json::from_str(&text(user, &["system", "df", "-v", "--format", "json"])).unwrap();
    assert_eq!(object["Containers"][0]["Names"], "box");
    assert_eq!(object["Images"][0]["Containers"], "1");
    user.run(["rm", "box"]).expect(0);

    user.run(["run", "-d", "--name", "box", "base", "sleep", "1000"])
        .expect(0);
    let top = text(user, &["top", "box", "-o", "pid,cmd"]);
    let (head, line) = top.trim().split_once('\n').unwrap();
    assert_eq!(head.split_whitespace().collect::<Vec<_>>(), ["PID", "CMD"]);
    assert!(line.ends_with("sleep 1000"), "{top}");
    user.run(["top", "box", "aux"]).expect(2);
    user.run(["rm", "-f", "box"]).expect(0);
}

fn pushed(user: &User, registry: &Registry) {
    let before = entries(registry, "container-base:1");
    assert_eq!(before.len(), 2, "{before:?}");
    user.run([
        "run",
        "--name",
        "box",
        "base",
        "sh",
        "-c",
        "echo changed >/changed",
    ])
    .expect(0);
    user.run(["commit", "box", "container-base:1"]).expect(0);
    // What the machine now has by that name goes there, beside what is there for other machines.
    let name = format!("{}/yocto/container-base:1", registry.host());
    user.run(["tag", "container-base:1", &name]).expect(0);
    let told = text(user, &["push", &name]);
    let after = entries(registry, "container-base:1");
    let digest = told.split_whitespace().nth(2).unwrap();
    assert_eq!(
        after[0],
        ("amd64".to_owned(), digest.to_owned()),
        "{after:?}"
    );
    assert_ne!(after[0], before[0]);
    assert_eq!(after[1], before[1]);
    // The same once more changes nothing; a new tag is an index as well.
    user.run(["push", &name]).expect(0);
    assert_eq!(entries(registry, "container-base:1"), after);
    let new = format!("{}/yocto/new:2", registry.host());
    user.run(["tag", &name, &new]).expect(0);
    user.run(["push", &new]).expect(0);
    assert_eq!(entries(registry, "new:2"), [after[0].clone()]);
    user.run(["rm", "box"]).expect(0);
    user.run(["rmi", "-f", &new, &name, "base"]).expect(0);
    let ran = user
        .run(["run", "--rm", "container-base:1", "cat", "/changed"])
        .expect(0);
    assert_eq!(ran.text(), "changed\n");
}
