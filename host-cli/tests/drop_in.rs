//! The command lines of the helper script `container-registry.sh`, and its faults mended.

mod rig;

use std::fs;
use std::net::TcpListener;

use rig::gate::Gate;
use rig::{User, status, stderr, stdout, write_layout};
use serde_json::Value;

fn json(output: &std::process::Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", stdout(output)))
}

#[test]
fn help_in_every_spelling_shows_where_everything_is() {
    let user = User::new();
    let storage = user.storage();
    for args in [&[][..], &["help"], &["--help"], &["-h"]] {
        let output = user.run(args);
        status(&output, 0);
        let text = stdout(&output);
        for word in [
            "push",
            "import",
            "delete",
            "Examples:",
            "Namespace:",
            "Tag strategy:",
            "Storage:",
            storage.to_str().unwrap(),
            &user.host(),
        ] {
            assert!(text.contains(word), "{args:?} lacks {word}: {text}");
        }
        assert_eq!(stderr(&output), "");
    }
    // Upstream's own tests call this and look for these words.
    let info = user.run(["info"]);
    status(&info, 0);
    assert!(stdout(&info).contains("Storage:"));
    assert!(!stdout(&info).contains("Password file"));
    let unknown = user.run(["pusch"]);
    status(&unknown, 2);
    let words = stderr(&unknown);
    assert!(words.contains("pusch") && words.contains("push"), "{words}");
    assert!(words.contains("container-registry help"), "{words}");
}

#[test]
fn life_of_a_registry_in_the_scripts_words() {
    let mut user = User::new();
    let down = user.run(["status"]);
    status(&down, 3);
    assert_eq!(stdout(&down), "Registry not running\n");
    let stopped = user.run(["stop"]);
    status(&stopped, 0);
    assert_eq!(stdout(&stopped), "Registry not running\n");
    let silent = user.run(["list"]);
    status(&silent, 3);
    assert!(
        stderr(&silent).contains("container-registry start"),
        "{}",
        stderr(&silent)
    );

    user.start();
    let again = user.run(["start"]);
    status(&again, 0);
    assert!(stdout(&again).starts_with("Registry already running (PID: "));
    let up = user.run(["status"]);
    status(&up, 0);
    for line in [
        "Registry running (PID: ",
        "URL: http://localhost:",
        "Status: healthy",
        "Mode: plain HTTP\n",
    ] {
        assert!(stdout(&up).contains(line), "{}", stdout(&up));
    }
    let stop = user.run(["stop"]);
    status(&stop, 0);
    assert!(stdout(&stop).contains("Registry stopped"));
    status(&user.run(["status"]), 3);
}

#[test]
fn push_takes_the_scripts_options_and_variables() {
    let mut user = User::with_registry();
    user.image("qemux86-64", "container-base");
    user.image("qemuarm64", "other");
    user.set("DEPLOY_DIR_IMAGES", user.deploy_dir().to_str().unwrap())
        .set("TARGET_ARCH", "x86_64");
    status(
        &user.run(["push", "container-base", "-t", "v1", "--tag", "v2"]),
        0,
    );
    status(
        &user.run(["push", "other", "-s", "semver latest", "-v", "1.2.3"]),
        0,
    );
    user.set("IMAGE_VERSION", "4.5.6")
        .set("CONTAINER_REGISTRY_TAG_STRATEGY", "version arch");
    status(&user.run(["push", "other"]), 0);
    status(&user.run(["push", "container-base", "--strategy", ""]), 0);

    let tags = |image: &str| {
        let output = user.run(["tags", image, "--json"]);
        status(&output, 0);
        let tags = json(&output)["tags"].clone();
        let mut tags: Vec<_> = tags
            .as_array()
            .unwrap()
            .iter()
            .map(|t| t.as_str().unwrap().to_owned())
            .collect();
        tags.sort();
        tags
    };
    assert_eq!(
        tags("other"),
        ["1", "1.2", "1.2.3", "4.5.6", "4.5.6-x86_64", "latest"]
    );
    assert_eq!(tags("yocto/container-base"), ["latest", "v1", "v2"]);
    let list = user.run(["list"]);
    status(&list, 0);
    assert!(
        stdout(&list).contains("yocto/container-base"),
        "{}",
        stdout(&list)
    );
    let catalog = user.run(["catalog", "--json"]);
    status(&catalog, 0);
    assert_eq!(
        json(&catalog)["repositories"],
        serde_json::json!(["yocto/container-base", "yocto/other"])
    );

    let missing = user.run(["push", "nothing-like-it"]);
    status(&missing, 5);
    assert!(
        stderr(&missing).contains("container-base (qemux86-64)"),
        "{}",
        stderr(&missing)
    );
    for (args, words) in [
        (&["push", "--tag", "v1"][..], "IMAGE"),
        (&["push", "--unknown"], "--unknown"),
        (&["push", "container-base", "--tag"], "--tag"),
        (
            &["push", "container-base", "--strategy", "latset"],
            "latest",
        ),
        (
            &["push", "container-base", "--tag", "not/legal"],
            "not/legal",
        ),
    ] {
        let output = user.run(args);
        status(&output, 2);
        assert!(
            stderr(&output).contains(words),
            "{args:?}: {}",
            stderr(&output)
        );
    }
}

#[test]
fn tags_delete_and_import_refuse_as_the_script_did() {
    let user = User::with_registry();
    user.image("qemux86-64", "app");
    let layout = user.deploy_dir().join("qemux86-64/app-latest-oci");
    status(
        &user.run(["push", layout.to_str().unwrap(), "--tag", "v1"]),
        0,
    );
    for (args, code) in [
        (&["tags"][..], 2),
        (&["tags", "unknown"], 5),
        (&["delete"], 2),
        (&["delete", "app"], 2),
        (&["delete", "app:nothing"], 5),
        (&["import"], 2),
        (&["delete", "app:v1"], 0),
        (&["tags", "app"], 5),
    ] {
        status(&user.run(args), code);
    }
}

#[test]
fn weakness_4b_22_it_listens_on_loopback_and_on_the_port_of_the_url() {
    let mut user = User::new();
    // A path in the URL, or no port, broke the script's file names and address.
    let path = user.run(["--url", "localhost:5000/yocto", "status"]);
    status(&path, 2);
    assert!(stderr(&path).contains("NAMESPACE"), "{}", stderr(&path));
    status(&user.run(["--url", "localhost", "status"]), 3);
    user.start();
    // Another address of this machine at the same port is free.
    TcpListener::bind(("127.0.0.2", user.port)).unwrap();
    status(
        &user.run([
            "--url",
            &format!("http://127.0.0.1:{}", user.port),
            "catalog",
        ]),
        0,
    );
}

#[test]
fn weakness_4b_23_a_server_that_answers_badly_is_not_healthy() {
    let user = User::new();
    // Everything is refused here: an answer, but no registry to work with.
    let gate = Gate::open("nothing fits", None);
    let output = user.run(["--url", &gate.host(), "list"]);
    status(&output, 4);
    // Nothing of it is in a directory that everybody can write to.
    let mut started = User::new();
    started.start();
    for name in ["pid", "log"] {
        let old = format!("/tmp/container-registry-{}.{name}", started.port);
        assert!(!std::path::Path::new(&old).exists());
        let new = started
            .storage()
            .join(format!("run/registry-{}.{name}", started.port));
        assert!(new.is_file(), "{}", new.display());
    }
}

#[test]
fn weakness_4b_23_stop_waits_and_one_machines_directory_is_used() {
    let mut user = User::with_registry();
    user.image("qemux86-64", "one");
    user.image("qemuarm64", "two");
    let only = user.deploy_dir().join("qemuarm64");
    user.set("DEPLOY_DIR_IMAGE", only.to_str().unwrap());
    status(&user.run(["push", "--strategy", "latest"]), 0);
    let catalog = user.run(["catalog"]);
    assert_eq!(stdout(&catalog), "yocto/two\n");
    status(&user.run(["stop"]), 0);
    // The port is free again at once.
    TcpListener::bind(("127.0.0.1", user.port)).unwrap();
}

#[test]
fn weakness_4b_24_sources_of_every_form_are_imported_under_the_right_name() {
    let user = User::with_registry();
    let layout = user.path("app-latest-oci");
    write_layout(&layout, "content");
    let push = user.run([
        "push",
        layout.to_str().unwrap(),
        "--tag",
        "latest",
        "--tag",
        "v1",
        "--json",
    ]);
    status(&push, 0);
    let digest = json(&push)["tags"][0]["digest"]
        .as_str()
        .unwrap()
        .to_owned();
    let source = format!("{}/yocto/app", user.host());
    for (from, name, tag) in [
        (source.clone(), "untagged", "latest"),
        (format!("{source}:v1"), "tagged", "v1"),
        (format!("{source}@{digest}"), "by-digest", "latest"),
        (format!("{source}:v1"), "named:v9", "v9"),
    ] {
        status(&user.run(["import", &from, name]), 0);
        let repository = name.split(':').next().unwrap();
        let tags = user.run(["tags", repository]);
        status(&tags, 0);
        assert_eq!(stdout(&tags), format!("{tag}\n"), "{from} {name}");
    }
}

#[test]
fn configuration_comes_from_the_storage_too() {
    let user = User::new();
    fs::create_dir(user.storage()).unwrap();
    fs::write(user.storage().join("config.toml"), "namespace = \"team\"\n").unwrap();
    let output = user.run(["config", "--json"]);
    status(&output, 0);
    let values = json(&output);
    let namespace = values
        .as_array()
        .unwrap()
        .iter()
        .find(|v| v["name"] == "namespace")
        .unwrap();
    assert_eq!(namespace["value"], "team");
    assert!(
        namespace["origin"]
            .as_str()
            .unwrap()
            .ends_with("config.toml")
    );
}

#[test]
fn the_days_of_certificates_are_those_that_were_asked_for() {
    for (variables, server, ca) in [
        (&[][..], 365, 3650),
        (&[("CONTAINER_REGISTRY_CERT_DAYS", "40")], 40, 3650),
        (
            &[
                ("CONTAINER_REGISTRY_CERT_DAYS", "90"),
                ("CONTAINER_REGISTRY_CA_DAYS", "800"),
            ],
            90,
            800,
        ),
    ] {
        let mut user = User::new();
        user.set("CONTAINER_REGISTRY_SECURE", "1");
        for (name, value) in variables {
            user.set(name, *value);
        }
        user.start();
        let show = user.run(["pki", "show", "--json"]);
        status(&show, 0);
        // Of the first day some seconds are gone.
        let days = |which: &str| json(&show)[which]["days_left"].as_i64().unwrap() + 1;
        for (which, wanted) in [("server", server), ("ca", ca)] {
            let left = days(which);
            assert!((wanted..=wanted + 1).contains(&left), "{which}: {left}");
        }
    }
}

#[test]
fn insecure_lets_plain_http_be_spoken_to_the_named_registry_alone() {
    let mut user = User::with_registry();
    // A name of this machine that nobody takes for loopback, and that leads there all the same.
    let url = format!("0.0.0.0:{}", user.port);
    user.set("CONTAINER_REGISTRY_URL", &url);
    let layout = user.image("qemux86-64", "app");
    let layout = layout.to_str().unwrap();
    let other = format!("0.0.0.0:{}", user.port ^ 1);
    for (insecure, done) in [
        ("", false),
        ("0", false),
        ("False", false),
        (other.as_str(), false),
        ("1", true),
        ("True", true),
        (url.as_str(), true),
        ("0.0.0.0", true),
    ] {
        let mut command = user.command(["push", layout, "--tag", "v1"]);
        command.env("CONTAINER_REGISTRY_INSECURE", insecure);
        let output = command.output().unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.success(), done, "{insecure:?}: {said}");
        if !done {
            assert!(said.contains("--insecure"), "{insecure:?}: {said}");
        }
    }
    let option = user.run(["--insecure", &url, "catalog"]);
    status(&option, 0);
    assert_eq!(stdout(&option), "yocto/app\n");
}

#[test]
fn an_image_is_found_by_the_name_with_rootfs_too() {
    let mut user = User::with_registry();
    user.image("qemux86-64", "app");
    user.image("qemux86-64", "other");
    user.set("DEPLOY_DIR_IMAGES", user.deploy_dir().to_str().unwrap());
    let push = user.run(["push", "app.rootfs", "--tag", "v1"]);
    status(&push, 0);
    assert_eq!(stdout(&user.run(["catalog"])), "yocto/app\n");
    status(&user.run(["push", "none.rootfs", "--tag", "v1"]), 5);
}

#[test]
fn a_port_of_the_earlier_registry_is_named_at_start() {
    let user = User::new();
    // It answers as a registry does, and is none of this storage.
    let earlier = Gate::open("nothing fits", None);
    let output = user.run(["--url", &earlier.host(), "start"]);
    status(&output, 1);
    let said = stderr(&output);
    for words in [
        earlier.port.to_string().as_str(),
        "used by another program",
        "CONTAINER_REGISTRY_URL=localhost:PORT",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    status(&user.run(["--url", &earlier.host(), "status"]), 3);
}
