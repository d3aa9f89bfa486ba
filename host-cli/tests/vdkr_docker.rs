//! Ways of docker's, and words of the earlier shell program, against an agent without a machine.

mod fake_agent;
mod user;

use std::fs;

use user::{User, status, stderr, stdout};
use vdkr_core::channel::message::{ContainerRequest, Network, Request};

#[test]
fn switches_have_values_and_the_last_holds() {
    let user = User::with_agent();
    let quiet = |words: &[&str]| stdout(&user.run(words));
    assert_eq!(quiet(&["ps", "-q"]), "aaaaaaaaaaaa\n");
    let both = "aaaaaaaaaaaa\nbbbbbbbbbbbb\n";
    assert_eq!(quiet(&["ps", "--all=true", "-q"]), both);
    assert_eq!(quiet(&["ps", "--all=false", "-aq"]), both);
    assert_eq!(quiet(&["ps", "-aq", "--all=0"]), "aaaaaaaaaaaa\n");
    status(&user.run(&["rm", "--force=true", "missing"]), 0);
    status(&user.run(&["rm", "--force=true", "-f=false", "missing"]), 5);
    status(
        &user.run(&["logs", "-f=false", "--tail=all", "-n", "1", "web"]),
        0,
    );
    match user.requests().pop() {
        Some(Request::Container(ContainerRequest::Logs(logs))) => {
            assert_eq!((logs.follow, logs.tail), (false, Some(1)));
        }
        other => panic!("{other:?}"),
    }
    status(&user.run(&["ps", "--all=maybe"]), 2);
}

#[test]
fn options_of_all_commands_belong_before_the_command() {
    let user = User::with_agent();
    for words in [
        &["images", "--registry", "r:1"][..],
        &["pull", "x", "--arch=aarch64"],
    ] {
        let output = user.run(words);
        status(&output, 2);
        let text = stderr(&output);
        assert!(text.contains("write it before the command"), "{text}");
    }
    let output = user.run(&["run", "--registry", "r:1", "img"]);
    status(&output, 125);
    assert!(stderr(&output).contains("write it before the command"));
    let output = user.run(&["pull", "--version"]);
    status(&output, 0);
    assert!(stdout(&output).starts_with("vdkr "));
    assert!(user.requests().is_empty());
}

#[test]
fn help_of_run_is_the_same_either_way() {
    let user = User::new();
    for verb in ["run", "create", "vrun"] {
        let output = user.run(&["help", verb]);
        status(&output, 0);
        let text = stdout(&output);
        assert!(text.contains("--entrypoint"), "{text}");
        assert_eq!(text, stdout(&user.run(&[verb, "--help"])));
    }
}

#[test]
fn what_the_shell_program_had_works_or_says_what_to_use() {
    let user = User::with_agent();
    for (words, instead) in [
        (&["--storage", "x", "pull", "img"][..], "vdkr save -o"),
        (&["--input-storage", "x", "images"], "vdkr load -i"),
        (&["--no-network", "images"], "run --network none"),
        (&["-it", "images"], "vdkr run -it"),
        (&["memres", "start", "-p", "8080:80"], "vdkr run -d -p"),
        (&["vmemres", "clean-ports"], "vdkr port"),
        (&["vshell"], "vdkr run --rm -it"),
        (&["vexpose", "80"], "vdkr run -d -p"),
        (&["bundle", "x"], "bake"),
        (&["ssh"], "vdkr exec -it"),
        (&["search", "alpine"], "hub.docker.com"),
        (&["system", "events"], "vdkr ps"),
        (&["image"], "vdkr image <COMMAND>"),
        (&["system"], "vdkr system <COMMAND>"),
    ] {
        let output = user.run(words);
        status(&output, 2);
        let text = stderr(&output);
        assert!(text.contains(instead), "{words:?}: {text}");
    }
    assert!(user.requests().is_empty());

    status(&user.run(&["-i", "--no-network", "run", "img", "cat"]), 0);
    let run = user.last_run();
    assert!(run.stdin && !run.tty);
    assert_eq!(run.sandbox.network, Network::None);
    status(&user.run(&["--no-daemon", "images"]), 0);
    let already = user.run(&["vmemres", "start"]);
    status(&already, 0);
    assert!(stderr(&already).contains("already running"));
}

#[test]
fn a_state_can_be_cleaned_by_its_old_names() {
    let user = User::new();
    let keep = user.state_dir().join("disk");
    for words in [&["clean"][..], &["vstorage", "clean"]] {
        fs::create_dir_all(user.state_dir()).unwrap();
        fs::write(&keep, "x").unwrap();
        let output = user.run(words);
        status(&output, 0);
        assert!(!keep.exists(), "{words:?}: {}", stderr(&output));
        let told = stderr(&output).contains("vstorage clean now");
        assert_eq!(told, words.len() == 1);
    }
    // There is no emulator here: the state goes, and no machine comes.
    fs::create_dir_all(user.state_dir()).unwrap();
    fs::write(&keep, "x").unwrap();
    status(&user.run(&["memres", "stop", "-f"]), 0);
    assert!(keep.exists());
    let output = user.run(&["memres", "restart", "--clean", "--idle-timeout", "x"]);
    status(&output, 2);
    assert!(keep.exists());
    let output = user.run(&["memres", "restart", "--clean"]);
    assert!(
        !output.status.success() && !keep.exists(),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_running_machine_keeps_its_idle_time() {
    let user = User::with_agent();
    let output = user.run(&["memres", "start", "--idle-timeout", "5"]);
    status(&output, 0);
    let text = stderr(&output);
    assert!(text.contains("--idle-timeout has no effect"), "{text}");
    let output = user.run(&["memres", "start"]);
    assert!(!stderr(&output).contains("no effect"));
}

#[test]
fn volumes_are_listed_described_and_removed_as_by_docker() {
    let user = User::with_agent();
    let listed = |words: &[&str]| stdout(&user.run(&[&["volume", "ls"], words].concat()));
    assert_eq!(
        listed(&["--format", "{{.Name}}:{{.Driver}}"]),
        "data:local\nother:local\n"
    );
    assert_eq!(
        listed(&["-q", "-f", "name=oth", "--filter", "dangling=true"]),
        "other\n"
    );
    assert_eq!(listed(&["-qf", "dangling=false"]), "");
    status(&user.run(&["volume", "ls", "-f", "size=1"]), 2);
    let output = user.run(&[
        "volume",
        "inspect",
        "-f",
        "{{.Name}} {{.Mountpoint}}",
        "data",
        "x",
    ]);
    status(&output, 0);
    assert!(stdout(&output).starts_with("data /var/lib/vdkr/volumes/data/_data\nx "));
    let output = user.run(&["volume", "inspect", "missing", "data"]);
    status(&output, 7);
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&found[0]["Name"], &found[1]),
        (&"data".into(), &serde_json::Value::Null)
    );
    assert!(stderr(&output).contains("no such volume: missing"));
    status(&user.run(&["volume", "create", "-d", "local", "vv"]), 0);
    status(&user.run(&["volume", "create", "--driver=nfs", "vv"]), 2);
    let output = user.run(&["volume", "rm", "v", "missing", "w"]);
    status(&output, 7);
    assert_eq!(stdout(&output), "v\nw\n");
    status(&user.run(&["volume", "rm", "missing"]), 5);
}

#[test]
fn names_of_this_computer_are_those_that_are_stored() {
    let user = User::with_agent();
    let shown = |words: &[&str]| stdout(&user.run(words));
    for name in [
        "localhost:5000/yocto/container-base",
        "127.0.0.1:5000/*/container-*:latest",
    ] {
        assert_eq!(shown(&["images", "-q", name]), "0a0a0a0a0a0a\n", "{name}");
        let filter = format!("reference={name}");
        assert_eq!(
            shown(&["images", "-q", "-f", &filter]),
            "0a0a0a0a0a0a\n",
            "{name}"
        );
    }
    assert_eq!(
        shown(&["images", "-q", "localhost:5001/yocto/container-base"]),
        ""
    );
    status(&user.run(&["tag", "one", "localhost:5000/mine:1"]), 0);
    let tag = Request::Tag {
        source: "one".into(),
        target: "10.0.2.2:5000/mine:1".into(),
    };
    assert_eq!(user.requests().pop(), Some(tag));
    for (name, found) in [
        ("localhost:5000/site", "web\n"),
        ("10.0.2.2:5000/site:latest", "web\n"),
        ("localhost:5001/site", ""),
    ] {
        let filter = format!("ancestor={name}");
        let words = ["ps", "--filter", &filter, "--format", "{{.Names}}"];
        assert_eq!(shown(&words), found, "{name}");
    }
}

#[test]
fn what_containers_have_and_how_many_there_are() {
    let user = User::with_agent();
    let shown = |words: &[&str]| stdout(&user.run(words));
    let format = "{{.Mounts}}|{{.LocalVolumes}}|{{.Networks}}";
    assert_eq!(shown(&["ps", "--format", format]), "data|1|host\n");
    assert_eq!(shown(&["ps", "-aqf", "volume=data"]), "aaaaaaaaaaaa\n");
    assert_eq!(shown(&["ps", "-aqf", "network=bridge"]), "bbbbbbbbbbbb\n");
    assert_eq!(
        shown(&["info", "-f", "{{.Containers}} {{.NCPU}} {{.ServerVersion}}"]),
        "2 3 1\n"
    );
    assert_eq!(shown(&["version", "-f", "{{.Server.Version}}"]), "1\n");
}

#[test]
fn a_platform_is_the_machines_or_refused() {
    let user = User::with_agent();
    for platform in ["linux/amd64", "linux/x86_64", "amd64", "linux/amd64/v1"] {
        status(
            &user.run(&["run", "--platform", platform, "img", "exit", "4"]),
            4,
        );
    }
    let output = user.run(&["run", "--platform=linux/arm64", "img", "exit", "4"]);
    status(&output, 125);
    assert!(
        stderr(&output).contains("vdkr -a aarch64 run"),
        "{}",
        stderr(&output)
    );
    let pulled = |platform: &str| {
        let output = user.run(&["pull", "-q", "--platform", platform, "base"]);
        status(&output, 0);
        stderr(&output)
    };
    assert!(pulled("linux/arm64").contains("but not run them"));
    assert!(user.requests().iter().any(|request| matches!(
        request,
        Request::Pull(pull) if pull.platform.as_deref() == Some("linux/arm64")
    )));
    assert_eq!(pulled("linux/amd64"), "");
    status(&user.run(&["pull", "--platform", "linux", "base"]), 2);
}

#[test]
fn a_directory_elsewhere_is_listed_too() {
    let user = User::new();
    let dir = user.home.path().join("elsewhere");
    let given = dir.to_str().unwrap();
    for command in [&["memres", "list"][..], &["vstorage", "list"]] {
        let words = [&["--state-dir", given], command].concat();
        assert!(!stdout(&user.run(&words)).contains(given), "{command:?}");
    }
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("arch"), "aarch64\n").unwrap();
    for command in [&["memres", "list"][..], &["vstorage", "list"]] {
        let words = [&["--state-dir", given], command].concat();
        let text = stdout(&user.run(&words));
        let row = text.lines().nth(1).unwrap();
        assert!(row.starts_with("aarch64") && row.contains(given), "{text}");
    }
    let text = stdout(&user.run(&["--state-dir", given, "vstorage", "df", "--json"]));
    let rows: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(rows[0]["count"], 1);
}

#[test]
fn the_earlier_programs_files_are_read() {
    let user = User::with_agent();
    let dir = user.home.path().join(".config/vdkr");
    fs::create_dir_all(&dir).unwrap();
    fs::write(
        dir.join("config"),
        "registry=r.example.com:1/ns\ntimeout=300\n",
    )
    .unwrap();
    let output = user.run(&["pull", "-q", "base"]);
    status(&output, 0);
    assert!(
        stderr(&output).contains("earlier vdkr"),
        "{}",
        stderr(&output)
    );
    let registry = user.last_pull().settings.registry;
    assert_eq!(registry.as_deref(), Some("r.example.com:1/ns"));
    status(&user.run(&["vconfig", "memory", "1G"]), 0);
    let output = user.run(&["vconfig", "registry"]);
    assert_eq!(
        (stdout(&output), stderr(&output)),
        ("r.example.com:1/ns\n".into(), String::new())
    );

    let logins = user.home.path().join("auth.json");
    let login = r#"{"auths":{"r.example.com:1":{"auth":"dTpzM2NyM3Q="}}}"#;
    fs::write(&logins, login).unwrap();
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(&logins, private).unwrap();
    for variable in ["VPDMN_CONFIG", "VDKR_CONFIG"] {
        let mut command = user.command(&["pull", "-q", "base"]);
        status(&command.env(variable, &logins).output().unwrap(), 0);
        let credential = &user.last_pull().settings.credentials[0];
        assert_eq!(credential.password.as_ref().unwrap().expose(), "s3cr3t");
    }
}

#[test]
fn the_earlier_programs_architecture_and_variables() {
    let user = User::new();
    let dir = user.home.path().join(".config/vdkr");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("arch"), "aarch64\n").unwrap();
    let arch = |variables: &[(&str, &str)]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_vdkr"));
        command
            .env_clear()
            .env("HOME", user.home.path())
            .envs(variables.iter().copied())
            .args(["vconfig", "arch"]);
        let output = command.output().unwrap();
        status(&output, 0);
        (stdout(&output), stderr(&output))
    };
    let (value, words) = arch(&[]);
    assert_eq!(value, "aarch64\n");
    assert!(words.contains("earlier vdkr"), "{words}");
    fs::write(dir.join("config"), "arch=x86_64\n").unwrap();
    assert_eq!(arch(&[]).0, "x86_64\n");
    assert_eq!(arch(&[("VDKR_ARCH", "aarch64")]).0, "aarch64\n");
    fs::write(dir.join("config.toml"), "").unwrap();
    let set = [
        ("VCONTAINER_CA_DIR", "/x"),
        ("VCONTAINER_HYPERVISOR", "qemu"),
    ];
    let (_, words) = arch(&set);
    assert_eq!(words.lines().count(), 1, "{words}");
    assert!(words.contains("VCONTAINER_CA_DIR") && words.contains("--ca-cert"));
}

#[test]
fn a_user_without_a_password_is_told_so() {
    let user = User::with_agent();
    let output = user.run(&["--registry", "r:1", "--registry-user", "u", "pull", "x"]);
    status(&output, 2);
    assert!(stderr(&output).contains("no password for --registry-user"));
}

#[test]
fn the_start_of_an_id_is_not_pushed_as_a_name() {
    let user = User::with_agent();
    for id in ["0a0a", "0a0a0a0a0a0a"] {
        let output = user.run(&["--registry", "r:1", "push", id]);
        status(&output, 2);
        let text = stderr(&output);
        assert!(text.contains("an id says nothing"), "{id}: {text}");
    }
}

#[test]
fn a_name_means_the_same_image_to_every_command() {
    let user = User::with_agent();
    let stored = "10.0.2.2:5000/yocto/container-base:latest";
    let registry = ["--registry", "localhost:5000/yocto"];
    let sent = |args: &[&str]| {
        let output = user.run(&[&registry[..], args].concat());
        (output.status.code(), user.requests().pop())
    };
    let names = || vec![stored.to_owned()];
    let (code, request) = sent(&["inspect", "--type", "image", "container-base"]);
    assert_eq!(
        (code, request),
        (Some(0), Some(Request::Inspect { names: names() }))
    );
    let (_, request) = sent(&["tag", "container-base", "mine"]);
    let tagged = Request::Tag {
        source: stored.to_owned(),
        target: "mine".to_owned(),
    };
    assert_eq!(request, Some(tagged));
    let (_, request) = sent(&["history", "container-base"]);
    assert_eq!(request, Some(Request::Export { names: names() }));
    status(
        &user.run(&[&registry[..], &["rmi", "container-base"]].concat()),
        0,
    );
    let removal = Request::Remove {
        names: names(),
        force: false,
    };
    assert!(user.requests().contains(&removal), "{:?}", user.requests());
    // Without a registry the agent finds it by the same rules.
    status(
        &user.run(&["inspect", "--type", "image", "container-base"]),
        0,
    );
    let asked = Request::Inspect {
        names: vec!["container-base".to_owned()],
    };
    assert_eq!(user.requests().pop(), Some(asked));
}

/// What `run` would take decides, not what the name would mean without the registry.
#[test]
fn exposed_ports_are_those_of_the_image_that_runs() {
    let user = User::with_agent();
    *user.agent.layers.lock().unwrap() = Some(100);
    let id = format!("sha256:{}", "0e".repeat(32));
    user.agent.needed.lock().unwrap().id.clone_from(&id);
    let args = [
        "--registry",
        "localhost:5000/yocto",
        "run",
        "-P",
        "img",
        "exit",
        "0",
    ];
    status(&user.run(&args), 0);
    let inspects: Vec<_> = user
        .requests()
        .into_iter()
        .filter(|request| matches!(request, Request::Inspect { .. }))
        .collect();
    assert_eq!(inspects, [Request::Inspect { names: vec![id] }]);
}

#[test]
fn every_tag_of_a_registry_that_is_down() {
    let user = User::with_agent();
    // Nobody listens there.
    let output = user.run(&["--registry", "127.0.0.1:9/ns", "pull", "-a", "base"]);
    status(&output, 3);
    let words = stderr(&output);
    assert!(words.contains("--no-registry"), "{words}");
}

#[test]
fn the_image_of_a_running_container_is_not_removed_by_its_id() {
    let user = User::with_agent();
    let id = "0a".repeat(6);
    let output = user.run(&["rmi", "-f", &id]);
    status(&output, 1);
    let words = stderr(&output);
    assert!(
        words.contains(
            "conflict: unable to delete 0a0a0a0a0a0a (cannot be forced) - image is being used by \
             running container aaaaaaaaaaaa"
        ),
        "{words}"
    );
    let removes = |request: &Request| matches!(request, Request::Remove { .. });
    assert!(!user.requests().iter().any(removes));
    // By its name it loses that; another image goes.
    status(&user.run(&["rmi", "-f", "container-base"]), 0);
    status(&user.run(&["rmi", "-f", &"0b".repeat(6)]), 0);
    assert_eq!(user.requests().iter().filter(|r| removes(r)).count(), 2);
}
