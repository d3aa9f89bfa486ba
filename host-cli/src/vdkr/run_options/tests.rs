use std::os::unix::ffi::OsStringExt as _;

use super::*;

fn words(text: &[&str]) -> Vec<OsString> {
    text.iter().map(OsString::from).collect()
}

fn run(text: &[&str]) -> RunOptions {
    match parse(Verb::Run, words(text)).unwrap() {
        Parsed::Run(options) => *options,
        Parsed::Help => panic!("help"),
    }
}

fn error(text: &[&str]) -> String {
    parse(Verb::Run, words(text)).unwrap_err().to_string()
}

#[test]
fn what_follows_the_image_is_not_touched() {
    let given = [
        "-i",
        "--rm",
        "--",
        "-e",
        "a b",
        "",
        "'\"$x\n",
        "--help",
        "--registry=x",
    ];
    let options = run(&[&["--rm", "img"], &given[..]].concat());
    assert_eq!(options.image, "img");
    assert_eq!(options.args, given);
    assert!(options.rm && !options.interactive);
}

#[test]
fn forms_of_values() {
    for form in [
        &["-w", "/x", "i"][..],
        &["-w/x", "i"],
        &["-w=/x", "i"],
        &["--workdir", "/x", "i"],
        &["--workdir=/x", "i"],
        &["-itw", "/x", "i"],
        &["-itw/x", "--", "i"],
    ] {
        let options = run(form);
        assert_eq!(options.workdir.as_deref(), Some("/x"), "{form:?}");
        assert_eq!(options.image, "i", "{form:?}");
    }
    // A value may look like an option.
    assert_eq!(run(&["--name", "--rm", "i"]).name.as_deref(), Some("--rm"));
    assert_eq!(
        run(&["--entrypoint", "", "i"]).entrypoint.as_deref(),
        Some("")
    );
    assert_eq!(run(&["--entrypoint=", "i"]).entrypoint.as_deref(), Some(""));
    assert_eq!(
        run(&["-w", "/a", "-w", "/b", "i"]).workdir.as_deref(),
        Some("/b")
    );
}

#[test]
fn switches() {
    let options = run(&["-it", "--rm", "--read-only", "-q", "i"]);
    assert!(options.interactive && options.tty && options.rm);
    assert!(options.read_only && options.quiet && options.sig_proxy);
    assert!(!run(&["--rm=false", "i"]).rm);
    assert!(!run(&["--sig-proxy=false", "i"]).sig_proxy);
    assert!(!run(&["-i=false", "i"]).interactive);
    assert!(error(&["--rm=maybe", "i"]).contains("true, false"));
}

#[test]
fn the_environment_keeps_its_order() {
    let options = run(&["-e", "A=1", "--env-file", "f", "-eB", "--env=C=x=y", "i"]);
    let entry = |text: &str| EnvSource::Entry(text.into());
    assert_eq!(
        options.env,
        [
            entry("A=1"),
            EnvSource::File("f".into()),
            entry("B"),
            entry("C=x=y")
        ]
    );
}

#[test]
fn an_option_of_dockers_is_refused_and_its_value_is_no_image() {
    for option in OPTIONS {
        let Meaning::Refused(why) = option.meaning else {
            continue;
        };
        if option.form == Form::Switch {
            continue;
        }
        let long = format!("--{}", option.long);
        let told = error(&[&long, "value", "i"]);
        assert!(told.contains(&long) && told.contains(why), "{long}");
        if let Some(short) = option.short {
            let short = format!("-{short}");
            assert!(error(&[&short, "value", "i"]).contains(why), "{short}");
        }
    }
    for (words, instead) in [
        (["-a", "stdout"], "-d for none"),
        (["--volume-driver", "nfs"], "-v DIRECTORY:PATH"),
    ] {
        assert!(error(&[&words[..], &["i"]].concat()).contains(instead));
    }
}

#[test]
fn a_containers_life() {
    let options = run(&[
        "-d",
        "--init",
        "--restart=on-failure:3",
        "--stop-signal",
        "SIGINT",
        "--stop-timeout=-1",
        "-l",
        "a=b=c",
        "--label",
        "d",
        "--cidfile",
        "f",
        "i",
    ]);
    assert!(options.detach && options.init);
    assert_eq!(options.restart, RestartPolicy::OnFailure { max: 3 });
    assert_eq!(
        (options.stop_signal, options.stop_timeout),
        (Some(2), Some(-1))
    );
    let labels: Vec<_> = options
        .labels
        .iter()
        .map(|(k, v)| (k.as_str(), v.as_str()))
        .collect();
    assert_eq!(labels, [("a", "b=c"), ("d", "")]);
    assert_eq!(options.cidfile.as_deref(), Some("f"));
    assert!(error(&["--restart=sometimes", "i"]).contains("on-failure[:N]"));
    assert!(error(&["--stop-signal", "NOPE", "i"]).contains("no signal"));
    assert!(error(&["--stop-timeout", "soon", "i"]).contains("seconds"));
    assert!(error(&["--rm", "--restart=always", "i"]).contains("cannot be used together"));
    assert!(error(&["-l", "=x", "i"]).contains("label"));
}

#[test]
fn vrun_leaves_no_container_and_no_entry_point() {
    let vrun = |text: &[&str]| match parse(Verb::Vrun, words(text)).unwrap() {
        Parsed::Run(options) => *options,
        Parsed::Help => panic!("help"),
    };
    assert!(vrun(&["i"]).rm && vrun(&["--rm=false", "i", "x"]).rm);
    assert_eq!(vrun(&["i"]).entrypoint, None);
    assert_eq!(vrun(&["i", "sh"]).entrypoint.as_deref(), Some(""));
    assert_eq!(
        vrun(&["--entrypoint=/e", "i", "sh"]).entrypoint.as_deref(),
        Some("/e")
    );
    for verb in [Verb::Run, Verb::Create, Verb::Vrun] {
        assert!(!verb.help().contains('{'), "{}", verb.help());
    }
}

#[test]
fn no_value_of_any_option_is_taken_for_the_image() {
    // Values that do for options that look at theirs.
    let values = [
        "value",
        "1",
        "a=b",
        "a:1.1.1.1",
        "CHOWN",
        "private",
        "host",
        "default",
        "bridge",
        "/dev/null",
        "1.1.1.1",
        "80",
        "64m",
        "80:80",
        "no-new-privileges",
        "/x",
        "nofile=1",
        "missing",
        "0-1",
        "5000",
        "always",
        "type=tmpfs,target=/t",
    ];
    for option in OPTIONS.iter().filter(|option| option.form == Form::Value) {
        let long = format!("--{}", option.long);
        let names = [Some(long), option.short.map(|short| format!("-{short}"))];
        for name in names.into_iter().flatten() {
            let read = |value: &str| parse(Verb::Run, words(&[&name, value, "img", "arg"]));
            let outcomes: Vec<_> = values.iter().map(|value| read(value)).collect();
            for outcome in &outcomes {
                if let Ok(Parsed::Run(options)) = outcome {
                    assert_eq!(
                        (options.image.as_str(), &options.args[..]),
                        ("img", &["arg".to_owned()][..]),
                        "{name}"
                    );
                }
            }
            let refused = matches!(option.meaning, Meaning::Refused(_));
            let read = outcomes.iter().any(Result::is_ok);
            // A limit of swap means something beside one of memory only.
            let needs_more = option.long == "memory-swap";
            assert!(refused != read || needs_more, "{name}: {outcomes:?}");
        }
    }
}

#[test]
fn what_cannot_be_honoured_is_refused_and_what_does_no_harm_is_told() {
    for option in OPTIONS {
        let long = format!("--{}", option.long);
        match option.meaning {
            Meaning::Refused(why) => {
                let given = if option.form == Form::Switch {
                    vec!["i"]
                } else {
                    vec!["1", "i"]
                };
                let error = error(&[&[long.as_str()][..], &given].concat());
                assert_eq!(error, format!("option {long} cannot be honoured: {why}"));
            }
            Meaning::Ignored(why) if option.form == Form::Value => {
                let options = run(&[&long, "x", &long, "y", "i"]);
                assert_eq!(
                    options.warnings,
                    [format!("option {long} has no effect: {why}")]
                );
            }
            _ => {}
        }
    }
    assert_eq!(run(&["--oom-kill-disable=false", "i"]).image, "i");
    assert!(run(&["--privileged", "i"]).sandbox.sandbox.privileged);
    assert!(!run(&["--privileged=0", "i"]).sandbox.sandbox.privileged);
    assert!(error(&["--privileged=maybe", "i"]).contains("true, false"));
    let error = error(&["--cap-add", "NET", "i"]);
    assert!(
        error.starts_with("option --cap-add: \"NET\" is no capability"),
        "{error}"
    );
}

#[test]
fn mounts_keep_their_order() {
    let options = run(&[
        "-v",
        "/a:/b:ro",
        "--mount=type=tmpfs,target=/t",
        "-vdata:/d",
        "i",
    ]);
    let targets: Vec<_> = options.mounts.iter().map(|mount| &*mount.target).collect();
    assert_eq!(targets, ["/b", "/t", "/d"]);
    assert!(options.mounts[0].read_only);
    let wrong = error(&["-v", "a:b:c:d", "i"]);
    assert!(wrong.starts_with("option -v:"), "{wrong}");
    assert!(error(&["--mount", "type=bind", "i"]).contains("names no target"));
}

#[test]
fn unknown_and_incomplete() {
    assert!(error(&["--bogus", "i"]).contains("unknown option --bogus"));
    assert!(error(&["--bogus=1", "i"]).contains("unknown option --bogus;"));
    assert!(error(&["-iz", "i"]).contains("unknown option -z"));
    assert!(error(&["-w"]).contains("needs a value"));
    assert!(error(&["--pull", "often", "i"]).contains("always, missing, never"));
    for empty in [&[][..], &["--rm"], &["--"], &[""]] {
        assert!(
            error(empty).contains("needs the name of an image"),
            "{empty:?}"
        );
    }
    let bytes = vec!["i".into(), OsString::from_vec(vec![0xff])];
    assert!(matches!(
        parse(Verb::Run, bytes),
        Err(OptionError::NotText(_))
    ));
}

#[test]
fn help_before_the_image_only() {
    assert_eq!(
        parse(Verb::Run, words(&["--rm", "--help"])).unwrap(),
        Parsed::Help
    );
    assert_eq!(run(&["i", "--help"]).args, ["--help"]);
    // Docker's -h is the host name.
    assert_eq!(run(&["-h", "box", "i"]).hostname.as_deref(), Some("box"));
}

#[test]
fn the_table_has_no_doubles() {
    let mut longs: Vec<_> = OPTIONS.iter().map(|option| option.long).collect();
    let mut shorts: Vec<_> = OPTIONS.iter().filter_map(|option| option.short).collect();
    let (all, all_short) = (longs.len(), shorts.len());
    longs.sort_unstable();
    longs.dedup();
    shorts.sort_unstable();
    shorts.dedup();
    assert_eq!((longs.len(), shorts.len()), (all, all_short));
    for option in OPTIONS
        .iter()
        .filter(|option| !matches!(option.meaning, Meaning::Refused(_) | Meaning::Ignored(_)))
    {
        // Second names, and a switch for what is never done.
        let silent = ["help", "net", "dns-opt", "no-healthcheck"].contains(&option.long);
        assert!(
            silent || HELP.contains(&format!("--{}", option.long)),
            "{}",
            option.long
        );
    }
}
