//! What a container may do and use, and how it is reached, in a real VM.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use vdkr_tests::fixtures::deploy_dir;
use vdkr_tests::process::{Ran, free_port, wait_until};
use vdkr_tests::registry::Registry;
use vdkr_tests::vm::{PATIENCE, User};

const IMAGE: &str = "container-base";

/// A user with a VM that runs and has the images.
fn user_with_vm(images: &[&str]) -> (Registry, User) {
    let registry = Registry::start();
    let deploy = deploy_dir();
    let push = ["push", "--deploy-dir-images", deploy.to_str().unwrap()];
    registry.run(push).expect(0);
    let user = User::new("x86_64");
    user.run(["--accel", "tcg", "memres", "start"]).expect(0);
    let prefix = format!("{}/yocto", registry.host());
    for image in images {
        user.run(["--registry", &prefix, "pull", image]).expect(0);
    }
    (registry, user)
}

/// `vdkr run OPTIONS IMAGE sh -c SCRIPT`.
#[track_caller]
fn sh(user: &User, options: &[&str], script: &str) -> Ran {
    let words = [&["run"][..], options, &[IMAGE, "sh", "-c", script]].concat();
    user.run(words)
}

/// What a script prints that succeeds.
#[track_caller]
fn out(user: &User, options: &[&str], script: &str) -> String {
    sh(user, options, script).expect(0).text().trim().to_owned()
}

/// The words of a `run` that is refused.
#[track_caller]
fn refused(user: &User, options: &[&str]) -> String {
    sh(user, options, "echo ran; exit 3").expect(125).stderr
}

#[test]
fn rights_limits_and_file_systems() {
    let (_registry, user) = user_with_vm(&[IMAGE]);

    // Capabilities, seccomp, and what root may not do.
    let status = "grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\t\n'";
    let state = out(&user, &[], status);
    assert_eq!(
        state,
        "CapEff:00000000a80425fbCapBnd:00000000a80425fbNoNewPrivs:0Seccomp:2"
    );
    let state = out(
        &user,
        &[
            "--cap-drop",
            "ALL",
            "--cap-add",
            "NET_RAW",
            "--security-opt",
            "no-new-privileges",
        ],
        status,
    );
    assert!(
        state.starts_with("CapEff:0000000000002000CapBnd:0000000000002000"),
        "{state}"
    );
    assert!(state.ends_with("NoNewPrivs:1Seccomp:2"), "{state}");
    let state = out(&user, &["--privileged"], status);
    assert!(
        state.starts_with("CapEff:000001ffffffffff") && state.ends_with("Seccomp:0"),
        "{state}"
    );
    let state = out(&user, &["--security-opt", "seccomp=unconfined"], status);
    assert!(state.ends_with("Seccomp:0"), "{state}");
    for refused in [
        "unshare -m true",
        "dmesg",
        "mount -t tmpfs x /tmp",
        "hostname other",
    ] {
        let ran = sh(&user, &[], refused);
        assert_ne!(ran.code(), 0, "{refused}");
        assert!(
            ran.stderr.contains("not permitted") || ran.stderr.contains("denied"),
            "{refused}: {}",
            ran.stderr
        );
    }
    sh(
        &user,
        &["--cap-add", "SYS_ADMIN"],
        "mount -t tmpfs x /tmp && unshare -m true",
    )
    .expect(0);
    sh(&user, &["--cap-drop", "CHOWN"], "chown 1:1 /tmp").expect(1);

    // A profile of one's own; the agent and the host read it alike.
    let profile = user.home().join("profile.json");
    let text = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
        {"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":13}]}"#;
    std::fs::write(&profile, text).unwrap();
    let option = format!("seccomp={}", profile.display());
    let ran = sh(&user, &["--security-opt", &option], "mkdir /tmp/x").expect(1);
    assert!(ran.stderr.contains("ermission denied"), "{}", ran.stderr);
    std::fs::write(&profile, "{").unwrap();
    assert!(refused(&user, &["--security-opt", &option]).contains("profile.json"));

    // Hidden and read-only paths.
    let hidden = "cat /proc/kcore /proc/keys /proc/timer_list | wc -c; ls /sys/firmware | wc -l";
    assert_eq!(out(&user, &[], hidden), "0\n0");
    sh(&user, &[], "echo 1 > /proc/sys/vm/overcommit_memory").expect(1);
    sh(&user, &[], "echo 1 > /sys/kernel/mm/ksm/run").expect(1);
    sh(
        &user,
        &["--privileged"],
        "echo 0 > /proc/sys/vm/overcommit_memory",
    )
    .expect(0);

    // Devices of the machine.
    sh(&user, &[], "mknod /tmp/d b 8 0 && head -c 1 /tmp/d").expect(1);
    let disk = ["--device", "/dev/vda:/dev/disk:r"];
    assert_eq!(out(&user, &disk, "head -c 16 /dev/disk | wc -c"), "16");
    sh(&user, &disk, "echo x > /dev/disk").expect(1);
    assert!(refused(&user, &["--device", "/dev/nothing"]).contains("/dev/nothing"));

    // Limits of the whole container.
    let limits = [
        "-m",
        "32m",
        "--memory-swap",
        "48m",
        "--cpus",
        "0.5",
        "--pids-limit",
        "40",
        "-c",
        "1024",
    ];
    let files = "cd /sys/fs/cgroup && cat memory.max memory.swap.max cpu.max pids.max cpu.weight";
    assert_eq!(
        out(&user, &limits, files),
        "33554432\n16777216\n50000 100000\n40\n39"
    );
    let hog = "head -c 64m /dev/zero | tail > /dev/null; echo after";
    let ran = sh(&user, &["-m", "16m", "--memory-swap", "16m"], hog).expect(0);
    assert!(ran.stderr.contains("Killed"), "{}", ran.stderr);
    let forks = "for i in 1 2 3 4 5 6 7 8; do sleep 30 & done";
    let ran = sh(&user, &["--pids-limit", "5"], forks);
    assert!(ran.stderr.contains("fork"), "{}", ran.stderr);
    assert!(refused(&user, &["-m", "1m"]).contains("least is 6m"));

    // Limits of each process, kernel parameters, readiness to be killed.
    let process = ["--ulimit", "nofile=77:88", "--oom-score-adj", "500"];
    let script = "ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj";
    assert_eq!(out(&user, &process, script), "77\n88\n500");
    let own = [
        "--sysctl",
        "kernel.shmmax=12345",
        "--sysctl",
        "net.ipv4.ip_forward=1",
    ];
    let script = "cat /proc/sys/kernel/shmmax /proc/sys/net/ipv4/ip_forward";
    assert_eq!(out(&user, &own, script), "12345\n1");
    assert_eq!(out(&user, &[], "cat /proc/sys/net/ipv4/ip_forward"), "0");
    assert!(refused(&user, &["--sysctl", "vm.swappiness=1"]).contains("whole machine"));

    // File systems in memory.
    let memory = [
        "--read-only",
        "--tmpfs",
        "/run:size=1m,mode=700",
        "--shm-size",
        "2m",
    ];
    let script = "touch /run/x && ! touch /x 2> /dev/null; df -k /run /dev/shm | awk 'NR > 1 { print $2 }'; \
                  stat -c %a /run; echo '#!/bin/sh' > /run/s; chmod +x /run/s; /run/s 2> /dev/null || echo noexec";
    assert_eq!(out(&user, &memory, script), "1024\n2048\n700\nnoexec");

    // Users and namespaces.
    let ids = out(
        &user,
        &["-u", "1000:5", "--group-add", "55"],
        "id -u; id -g; id -G",
    );
    assert_eq!(ids, "1000\n5\n5 55");
    assert!(refused(&user, &["--group-add", "nogroup-such"]).contains("nogroup-such"));
    assert_eq!(
        out(
            &user,
            &["--pid", "host"],
            "cat /proc/1/comm; test $$ -gt 1 && echo host"
        ),
        "init\nhost"
    );
    assert_eq!(out(&user, &["--uts", "host"], "hostname"), "vdkr");
    assert_eq!(
        out(
            &user,
            &["--hostname", "box", "--domainname", "ex.org"],
            "hostname; cat /proc/sys/kernel/domainname"
        ),
        "box\nex.org"
    );
    let private = out(&user, &[], "readlink /proc/self/ns/ipc");
    let shared = out(&user, &["--ipc", "host"], "readlink /proc/self/ns/ipc");
    assert_eq!(
        shared,
        out(&user, &["--ipc", "host"], "readlink /proc/self/ns/ipc")
    );
    assert_ne!(private, shared);

    // Not silently.
    let ran = sh(&user, &["--log-driver", "none"], "true").expect(0);
    assert!(
        ran.stderr.contains("--log-driver has no effect"),
        "{}",
        ran.stderr
    );
    assert!(refused(&user, &["--oom-kill-disable"]).contains("cannot be honoured"));
}

/// Reads all that a server says to `request`.
fn ask(address: Ipv4Addr, port: u16, request: &str) -> Option<String> {
    let mut stream = TcpStream::connect((address, port)).ok()?;
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .ok()?;
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer).filter(|answer| !answer.is_empty())
}

fn answers(port: u16, with: &str) -> bool {
    answers_at(Ipv4Addr::LOCALHOST, port, with)
}

fn answers_at(address: Ipv4Addr, port: u16, with: &str) -> bool {
    ask(address, port, "hello\n").is_some_and(|answer| answer.trim() == with)
}

/// A program that runs in the background, ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn spawn(command: &mut Command) -> Running {
    Running(
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap(),
    )
}

/// A server inside that says a word to everyone, one after the other.
fn server(word: &str) -> String {
    format!("while true; do echo {word} | nc -l -p 80; done")
}

#[test]
fn networks_and_ports() {
    let (registry, user) = user_with_vm(&[IMAGE]);
    let own_address = "ip -4 -o addr show eth0 | awk '{ print $4 }'";

    // An address of its own on the bridge, the host and name resolution within reach.
    let address = out(&user, &["--network", "bridge"], own_address);
    assert!(
        address.starts_with("10.0.2.") && address.ends_with("/24"),
        "{address}"
    );
    assert_ne!(address, "10.0.2.15/24");
    assert_ne!(address, out(&user, &[], own_address));
    let port = registry.port();
    for network in ["bridge", "host"] {
        let get = format!("wget -qO- http://10.0.2.2:{port}/v2/");
        assert_eq!(out(&user, &["--network", network], &get), "{}");
    }
    assert_eq!(
        out(&user, &["--network", "host"], own_address),
        "10.0.2.15/24"
    );
    assert_eq!(
        out(&user, &["--network", "none"], "ls /sys/class/net"),
        "lo"
    );
    let files = "cat /etc/resolv.conf; grep -c . /etc/hosts; grep zulu /etc/hosts; grep \"$(hostname)\" /etc/hosts | cut -c1-7";
    let names = [
        "--add-host",
        "zulu:1.2.3.4",
        "--dns",
        "9.9.9.9",
        "--dns-search",
        "ex.org",
    ];
    let expected = "nameserver 9.9.9.9\nsearch ex.org\n4\n1.2.3.4\tzulu\n10.0.2.";
    assert_eq!(out(&user, &names, files), expected);
    assert!(refused(&user, &["--network", "mine"]).contains("those are bridge, host, none"));

    // A published port of an attached container, opened before and closed after it.
    let web = free_port();
    let publish = format!("{web}:80");
    let words = [
        "run",
        "--name",
        "web",
        "-p",
        &publish,
        IMAGE,
        "sh",
        "-c",
        &server("one"),
    ];
    let running = spawn(user.command().args(words));
    wait_until("the container answers", PATIENCE, || answers(web, "one"));
    let ports = user.run(["port", "web"]).expect(0).text();
    assert_eq!(ports, format!("80/tcp -> 127.0.0.1:{web}\n"));
    assert_eq!(
        user.run(["port", "web", "80"]).expect(0).text(),
        format!("127.0.0.1:{web}\n")
    );
    user.run(["port", "web", "81"]).expect(1);
    // Only on loopback.
    let busy = refused(&user, &["-p", &publish]);
    assert!(
        busy.contains(&format!("port {web} of 127.0.0.1 (tcp) is in use")),
        "{busy}"
    );

    // Others reach it by its address, and from within its network.
    let script = "ip -4 -o addr show eth0 | awk '{ print $4 }' | cut -d/ -f1";
    let address = out(&user, &["--network", "container:web"], script);
    // The server is away for a moment after each visitor.
    let visit = |address: &str| {
        format!("until nc {address} 80 < /dev/null 2> /dev/null; do sleep 0.1; done")
    };
    assert_eq!(out(&user, &[], &visit(&address)), "one");
    let within = ["--network", "container:web"];
    assert_eq!(out(&user, &within, &visit("127.0.0.1")), "one");
    assert!(refused(&user, &["--network", "container:nobody"]).contains("nobody"));
    drop(running);
    wait_until("the port is closed", PATIENCE, || {
        TcpListener::bind((Ipv4Addr::LOCALHOST, web)).is_ok()
    });

    // A detached container keeps its ports until it ends.
    let words = [
        "run",
        "-d",
        "--name",
        "two",
        "-p",
        &publish,
        IMAGE,
        "sh",
        "-c",
        &server("two"),
    ];
    user.run(words).expect(0);
    wait_until("the detached container answers", PATIENCE, || {
        answers(web, "two")
    });
    assert_eq!(
        user.run(["port", "two", "80/tcp"]).expect(0).text(),
        format!("127.0.0.1:{web}\n")
    );
    user.run(["rm", "-f", "two"]).expect(0);
    wait_until("the port is closed", PATIENCE, || {
        TcpListener::bind((Ipv4Addr::LOCALHOST, web)).is_ok()
    });
    let gone = user.run(["port", "two"]).expect(5);
    assert!(gone.stderr.contains("no such container"), "{}", gone.stderr);

    // At the address that is given, and at no other.
    let (there, all) = (format!("127.0.0.2:{web}:80"), free_port());
    let everywhere = format!("0.0.0.0:{all}:81");
    let script = format!(
        "(while true; do echo all | nc -l -p 81; done) & {}",
        server("there")
    );
    let words = [
        "run",
        "-d",
        "--name",
        "at",
        "-p",
        &there,
        "-p",
        &everywhere,
        IMAGE,
        "sh",
        "-c",
        &script,
    ];
    user.run(words).expect(0);
    let second = Ipv4Addr::new(127, 0, 0, 2);
    let first = Ipv4Addr::LOCALHOST;
    for (address, port, word) in [
        (second, web, "there"),
        (second, all, "all"),
        (first, all, "all"),
    ] {
        wait_until("the address answers", PATIENCE, || {
            answers_at(address, port, word)
        });
    }
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, web)).is_err());
    assert_eq!(
        user.run(["port", "at"]).expect(0).text(),
        format!("80/tcp -> 127.0.0.2:{web}\n81/tcp -> 0.0.0.0:{all}\n")
    );
    user.run(["rm", "-f", "at"]).expect(0);

    // The machine's own network.
    let publish = format!("{web}:80");
    let words = [
        "run",
        "--network",
        "host",
        "-p",
        &publish,
        IMAGE,
        "sh",
        "-c",
        &server("three"),
    ];
    let running = spawn(user.command().args(words));
    wait_until("the machine's own network answers", PATIENCE, || {
        answers(web, "three")
    });
    drop(running);

    // A machine of the command's own.
    user.run(["memres", "stop"]).expect(0);
    let words = [
        "--accel",
        "tcg",
        "run",
        "-p",
        &publish,
        IMAGE,
        "sh",
        "-c",
        &server("four"),
    ];
    wait_until("the port is closed", PATIENCE, || {
        TcpListener::bind((Ipv4Addr::LOCALHOST, web)).is_ok()
    });
    let running = spawn(user.command().args(words));
    wait_until("the command's own machine answers", PATIENCE, || {
        answers(web, "four")
    });
    drop(running);
}

#[test]
fn system_calls_of_a_debian_container() {
    let (_registry, user) = user_with_vm(&["debian-base"]);
    let run = |options: &[&str], words: &[&str]| {
        let words = [&["run"][..], options, &["debian-base"], words].concat();
        user.run(words)
    };
    // What docker's profile refuses, by number, and what it lets through. Each call gives its
    // error number; 22 and the like mean that the kernel has looked at it.
    let script = r#"
        sub call { my ($name, $number, @words) = @_; $! = 0;
                   my $result = syscall($number, @words); my $error = $! + 0;
                   print "$name ", ($result == -1 ? $error : 0), "\n"; }
        call("keyctl", 250, 0, 0, 0); call("add_key", 248, 0, 0, 0, 0, 0); call("unshare", 272, 0x10000000);
        call("setns", 308, 0, 0); call("bpf", 321, 0, 0, 0); call("userfaultfd", 323, 0);
        call("io_uring_setup", 425, 0, 0); call("perf_event_open", 298, 0, 0, 0, 0, 0);
        call("mount", 165, 0, 0, 0, 0, 0); call("kexec_load", 246, 0, 0, 0, 0); call("reboot", 169, 0, 0, 0, 0);
        call("swapon", 167, 0, 0); call("open_by_handle_at", 304, 0, 0, 0); call("syslog", 103, 3, 0, 0);
        call("clone3", 435, 0, 0); call("new", 3000); call("vsock", 41, 40, 1, 0); call("vsock", 41, 0x100000028, 1, 0);
        call("personality", 135, 0x40000); call("namespace", 56, 0x10000000 | 17, 0, 0, 0, 0);
        call("socket", 41, 1, 1, 0); call("query", 135, 0xffffffff); call("getpid", 39); call("chroot", 161, 0);
    "#;
    let expected = "keyctl 1\nadd_key 1\nunshare 1\nsetns 1\nbpf 1\nuserfaultfd 1\nio_uring_setup 1\n\
        perf_event_open 1\nmount 1\nkexec_load 1\nreboot 1\nswapon 1\nopen_by_handle_at 1\nsyslog 1\n\
        clone3 38\nnew 38\nvsock 1\nvsock 1\npersonality 1\nnamespace 1\nsocket 0\nquery 0\ngetpid 0\nchroot 14\n";
    assert_eq!(run(&[], &["perl", "-e", script]).expect(0).text(), expected);
    // The same for a process that comes later, and for one without new privileges.
    run(&["-d", "--name", "box"], &["sleep", "1000"]).expect(0);
    let later = user.run(["exec", "box", "perl", "-e", script]).expect(0);
    assert_eq!(later.text(), expected);
    user.run(["rm", "-f", "box"]).expect(0);
    let unprivileged = ["-u", "nobody", "--security-opt", "no-new-privileges"];
    let text = run(&unprivileged, &["perl", "-e", script]).expect(0).text();
    assert!(
        text.contains("keyctl 1\n") && text.contains("clone3 38\n") && text.contains("getpid 0\n"),
        "{text}"
    );
    // Without the filter the kernel itself answers: these calls are there.
    let text = run(
        &["--security-opt", "seccomp=unconfined"],
        &["perl", "-e", script],
    )
    .expect(0)
    .text();
    assert!(
        !text.contains("keyctl 1\n") && !text.contains("clone3 38\n"),
        "{text}"
    );

    // Datagrams to a published port.
    let port = free_port();
    let echo = "socket(S, AF_INET, SOCK_DGRAM, 0); bind(S, sockaddr_in(53, INADDR_ANY)) or die; \
        while (my $from = recv(S, my $text, 99, 0)) { send(S, $text, 0, $from) }";
    let publish = format!("{port}:53/udp");
    let words = [
        "run",
        "-p",
        &publish,
        "debian-base",
        "perl",
        "-MSocket",
        "-e",
        echo,
    ];
    let running = spawn(user.command().args(words));
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let pause = Some(Duration::from_millis(500));
    socket.set_read_timeout(pause).unwrap();
    wait_until("the datagram comes back", PATIENCE, || {
        let mut answer = [0; 16];
        let sent = socket.send_to(b"ping", (Ipv4Addr::LOCALHOST, port));
        sent.is_ok()
            && socket
                .recv(&mut answer)
                .is_ok_and(|length| &answer[..length] == b"ping")
    });
    drop(running);

    // Ordinary programs.
    let script = "set -e; dpkg -l | wc -l; find /usr -name '*.so*' | head -3; tar c /etc | tar t | tail -1; \
        perl -MPOSIX -e 'print POSIX::uname(), qq(\\n)'; apt-get --version | head -1; \
        groupadd --system made; useradd -m -g made maker; su maker -c 'id -un; touch ~/x; ls -l ~/x'; \
        mknod /tmp/null c 1 3; echo x > /tmp/null; ls -la /proc/self/fd > /dev/null; sort -R /etc/passwd | wc -l";
    let ran = run(&[], &["bash", "-c", script]).expect(0);
    assert!(ran.text().contains("maker\n"), "{}", ran.text());
}
