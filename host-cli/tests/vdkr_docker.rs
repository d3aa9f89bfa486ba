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
