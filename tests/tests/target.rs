//! The agent away from `vdkr`'s own machine: as a service of a full image that is reached over a
//! virtio-serial port and a serial line, and in a small VM whose image knows the registry.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};
use tempfile::TempDir;
use vdkr_tests::board::Board;
use vdkr_tests::fixtures::deploy_dir;
use vdkr_tests::newc;
use vdkr_tests::process::{free_port, run_within, tool, wait_until};
use vdkr_tests::registry::Registry;
use vdkr_tests::vm::{PATIENCE, User, image_dir};

/// A registry with TLS and a password, filled from the deploy directory.
struct Secured {
    registry: Registry,
    dir: TempDir,
}

impl Secured {
    fn start() -> Self {
        let dir = TempDir::new().unwrap();
        let secure = [("CONTAINER_REGISTRY_SECURE", "1")];
        let registry = Registry::start_with(&dir.path().join("storage"), free_port(), &secure);
        let deploy = deploy_dir();
        let push = ["push", "--deploy-dir-images", deploy.to_str().unwrap()];
        let mut command = registry.command();
        run_within(command.args(push), b"", PATIENCE).expect(0);
        Self { registry, dir }
    }

    fn file(&self, name: &str) -> String {
        fs::read_to_string(self.registry.storage().join(name)).unwrap()
    }

    /// docker's file with the login at the registry, as `host` calls it.
    fn logins(&self, host: &str) -> String {
        let pair = format!("yocto:{}", self.file("auth/password").trim_end());
        let mut encode = tool("base64");
        let pair = run_within(encode.arg("-w0"), pair.as_bytes(), PATIENCE).expect(0);
        json!({"auths": {host: {"auth": pair.text()}}}).to_string()
    }
}

fn file(path: &str, mode: u32, text: &str) -> newc::File {
    (path.to_owned(), mode, text.as_bytes().to_vec())
}

#[test]
fn a_debian_with_systemd_is_configured_pulls_and_runs_for_its_user_and_its_host() {
    let secured = Secured::start();
    let its_name = format!("10.0.2.2:{}", secured.registry.port());
    let conf = format!(
        "VDKR_DEFAULT_REGISTRY=\"{its_name}/yocto\"\nVDKR_INSECURE_REGISTRIES=\"lab:5001\"\n"
    );
    let mut board = Board::boot(vec![
        file("etc/vdkr/registry.conf", 0o644, &conf),
        file("etc/vdkr/ca.crt", 0o644, &secured.file("pki/ca.crt")),
        file(
            "root/.docker/config.json",
            0o600,
            &secured.logins(&its_name),
        ),
        file(
            "etc/docker/daemon.json",
            0o644,
            "{\n  \"log-driver\": \"journald\"\n}\n",
        ),
    ]);
    board.sh("until systemctl is-active -q multi-user.target; do sleep 0.2; done");
    board.sh("until systemctl is-active -q vdkr-agent; do sleep 0.2; done");

    configuring(&mut board, &its_name, &secured);
    its_own_user(&mut board, &its_name);
    let user = User::new("x86_64");
    let port = format!("serial:{}", board.port().display());
    its_host(&user, &port, &its_name, &secured);
    channels(&user, &board);
    vsock(&user, &board);
    service(&mut board, &user, &port);
}

/// `configure`, twice, and back.
fn configuring(board: &mut Board, registry: &str, secured: &Secured) {
    let status = board.sh("vdkr-agent status");
    for words in [
        &format!("registry: {registry}/yocto"),
        "ca: /etc/vdkr/ca.crt",
        "configured: nothing",
        "service: running",
    ] {
        assert!(status.contains(words), "{status}");
    }
    for store in STORES {
        let (status, words) = board.try_sh(&connect(registry, store));
        assert!(
            status != 0 && words.contains("verify failed"),
            "{store}: {words}"
        );
    }
    let sums = "find /etc /usr/local/share -type f ! -path '/etc/mtab' | sort | xargs sha256sum";
    let before = board.sh(sums);
    let done = board.sh("vdkr-agent configure --profile docker,podman,vdkr");
    assert!(done.contains("daemon.json"), "{done}");
    let ca = secured.file("pki/ca.crt");
    for engine in ["docker", "containers"] {
        let path = format!("/etc/{engine}/certs.d/{registry}/ca.crt");
        assert_eq!(
            board.sh(&format!("cat '{path}'")).trim(),
            ca.trim(),
            "{path}"
        );
    }
    let daemon: Value = serde_json::from_str(&board.sh("cat /etc/docker/daemon.json")).unwrap();
    assert_eq!(daemon["log-driver"], "journald");
    assert_eq!(daemon["insecure-registries"], json!(["lab:5001"]));
    let drop_in = board.sh("cat /etc/containers/registries.conf.d/*");
    assert!(
        drop_in.contains(registry) && drop_in.contains("yocto"),
        "{drop_in}"
    );
    for store in STORES {
        board.sh(&connect(registry, store));
    }
    let again = board.sh("vdkr-agent configure --profile docker,podman,vdkr 2>&1");
    assert!(again.contains("nothing to change"), "{again}");
    board.sh("vdkr-agent configure --undo");
    let after = board.sh(sums);
    assert_eq!(before, after, "everything is as it was");
}

/// The trust store, as the programs of the board read it: in one file, or in a directory.
const STORES: [&str; 2] = [
    "-CAfile /etc/ssl/certs/ca-certificates.crt -no-CApath",
    "-CApath /etc/ssl/certs -no-CAfile",
];

/// Speaks TLS with the registry, and fails unless it is known by this store under its address.
fn connect(registry: &str, store: &str) -> String {
    let address = registry.split(':').next().unwrap_or(registry);
    format!(
        "openssl s_client -brief -verify_return_error -verify_ip {address} -no-CAstore {store} \
         -connect {registry} </dev/null 2>&1"
    )
}

/// What a user of the board types.
fn its_own_user(board: &mut Board, registry: &str) {
    let pulled = board.sh("vdkr-agent pull container-base 2>/dev/null");
    assert_eq!(
        pulled.trim(),
        format!("{registry}/yocto/container-base:latest")
    );
    let said = board.sh("vdkr-agent run --rm -e A='b c' container-base sh -c 'echo \"$A\"; id -u'");
    assert_eq!(said, "b c\n0\n");
    let (status, _) = board.try_sh("vdkr-agent run --rm container-base sh -c 'exit 7'");
    assert_eq!(status, 7);
    let counted = board.sh("seq 100000 | vdkr-agent run --rm -i container-base wc -l");
    assert_eq!(counted.trim(), "100000");
    let (status, words) = board.try_sh("vdkr-agent run no/such/image");
    assert_eq!(status, 125, "{words}");
    // With another state it needs no service.
    let alone = "vdkr-agent run --rm --state-dir /var/tmp/alone container-base echo alone";
    assert!(board.sh(alone).ends_with("alone\n"));
    let (status, words) =
        board.try_sh("vdkr-agent run -d --state-dir /var/tmp/alone container-base true");
    assert!(status == 125 && words.contains("service"), "{words}");
    // One service at a time.
    let (status, words) = board.try_sh("vdkr-agent serve --unix /run/second.sock");
    assert!(
        status == 1 && words.contains("/var/lib/vdkr") && words.contains("use"),
        "{words}"
    );
}

/// What a user of the host types.
fn its_host(user: &User, target: &str, registry: &str, secured: &Secured) {
    let vdkr = |args: &[&str]| user.run(["--target", target].iter().chain(args).copied());
    let name = format!("{registry}/yocto/container-base");
    let images = vdkr(&["images"]).expect(0).text();
    assert!(images.contains(&name), "{images}");
    vdkr(&["rmi", &name]).expect(0);

    // The board knows registry, CA and password; the host says nothing of them.
    let pulled = vdkr(&["pull", "container-base"]).expect(0).text();
    assert_eq!(pulled.trim(), format!("{name}:latest"));
    let ran = vdkr(&["run", "--rm", "container-base", "uname", "-n"]).expect(0);
    assert_eq!(
        ran.text().trim().len(),
        12,
        "a container's own name: {}",
        ran.text()
    );
    vdkr(&["run", "--rm", "container-base", "sh", "-c", "exit 3"]).expect(3);
    // What the host says wins: a password that is wrong is refused.
    let ca = secured.registry.storage().join("pki/ca.crt");
    let prefix = format!("{}/yocto", secured.registry.host());
    let wrong = user
        .command()
        .args(["--target", target, "--registry", &prefix, "--ca-cert"])
        .arg(&ca)
        .args(["--registry-user", "yocto", "--registry-password", "wrong"])
        .args(["pull", "container-base"])
        .output()
        .unwrap();
    assert_eq!(wrong.status.code(), Some(4), "{wrong:?}");

    // Containers that stay.
    let id = vdkr(&[
        "run",
        "-d",
        "--name",
        "web",
        "container-base",
        "sh",
        "-c",
        "echo up; sleep 1000",
    ])
    .expect(0)
    .text();
    assert_eq!(id.trim().len(), 64);
    let listed = vdkr(&["ps"]).expect(0).text();
    assert!(listed.contains("web"), "{listed}");
    wait_until("its output", PATIENCE, || {
        vdkr(&["logs", "web"]).expect(0).text() == "up\n"
    });
    let said = vdkr(&["exec", "web", "sh", "-c", "echo in; exit 4"]).expect(4);
    assert_eq!(said.text(), "in\n");
    vdkr(&["stop", "-t", "1", "web"]).expect(0);
    vdkr(&["rm", "web"]).expect(0);

    // Directories of this computer, as long as the command is there.
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("in"), "from here\n").unwrap();
    let mount = format!("{}:/data", dir.path().display());
    let copy = "cat /data/in; echo from there > /data/out";
    let ran = vdkr(&[
        "run",
        "--rm",
        "-v",
        &mount,
        "container-base",
        "sh",
        "-c",
        copy,
    ])
    .expect(0);
    assert_eq!(ran.text(), "from here\n");
    assert_eq!(
        fs::read_to_string(dir.path().join("out")).unwrap(),
        "from there\n"
    );
    let refused = vdkr(&["run", "-d", "-v", &mount, "container-base", "true"]).expect(125);
    assert!(refused.stderr.contains("without -d"), "{}", refused.stderr);

    // What a target does not have.
    let refused = vdkr(&["run", "-p", "8080:80", "container-base", "true"]).expect(125);
    assert!(
        refused.stderr.contains("target's network"),
        "{}",
        refused.stderr
    );
    for command in [
        &["memres", "status"][..],
        &["vstorage", "list"],
        &["port", "web"],
    ] {
        let refused = vdkr(command).expect(2);
        assert!(refused.stderr.contains("target"), "{}", refused.stderr);
    }
    let info = vdkr(&["info"]).expect(0).text();
    assert!(
        info.contains(target) && info.contains("vdkr-agent"),
        "{info}"
    );
    assert!(vdkr(&["version"]).expect(0).text().contains("Agent"));

    // A host that dies takes its container along, and the next one is served.
    let mut child = user
        .command()
        .args(["--target", target, "run", "--name", "lost"])
        .args([
            "container-base",
            "sh",
            "-c",
            "while :; do echo x; sleep 0.1; done",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut some = [0; 2];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut some)
        .unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until("the end of the container", PATIENCE, || {
        !vdkr(&["ps"]).expect(0).text().contains("lost")
    });
    vdkr(&["rm", "lost"]).expect(0);
}

/// Other ways to the same agent, and two commands at a time.
fn channels(user: &User, board: &Board) {
    let unix = format!("unix:{}", board.port().display());
    let variable = user
        .command()
        .env("VDKR_TARGET", &unix)
        .args(["images", "-q"])
        .output()
        .unwrap();
    assert!(variable.status.success(), "{variable:?}");
    assert!(!variable.stdout.is_empty());

    // A serial line passes every byte.
    let line = format!("serial:{}", board.line().display());
    let every: Vec<u8> = (0..=255).cycle().take(4096).collect();
    let run = ["--target", &line, "run", "--rm", "-i", "container-base"];
    let lines: Vec<&[u8]> = every.split_inclusive(|&byte| byte == b'\n').collect();
    let reversed: Vec<u8> = lines.into_iter().rev().flatten().copied().collect();
    for (program, wanted) in [("cat", &every), ("tac", &reversed)] {
        let back = user
            .run_with_input(run.iter().copied().chain([program]), &every)
            .expect(0);
        assert!(back.stdout == *wanted, "{program}: {:?}", back.stdout);
    }
    user.run(["vconfig", "target", &line]).expect(0);
    let images = user.run(["images", "-q"]).expect(0);
    assert_eq!(images.stdout, variable.stdout);
    user.run(["vconfig", "target", "--reset"]).expect(0);

    // The port and the line at once: commands wait for one another on a way, not for another way.
    let mut held = user
        .command()
        .args(["--target", &line, "run", "--rm", "-i"])
        .args(["container-base", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = held.stdin.take().unwrap();
    let mut said = [0; 5];
    for word in [b"first", b"later"] {
        stdin.write_all(word).unwrap();
        held.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
        assert_eq!(&said, word);
        user.run(["--target", &unix, "images"]).expect(0);
        assert!(held.try_wait().unwrap().is_none(), "it was held no longer");
    }
    drop(stdin);
    let ended = held.wait_with_output().unwrap();
    assert!(ended.status.success(), "{ended:?}");
}

/// The host's way to vsock.
fn vsock(user: &User, board: &Board) {
    let target = format!("vsock:{}", board.vsock().display());
    let every: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
    let run = ["--target", &target, "run", "--rm", "-i", "container-base"];
    let back = user
        .run_with_input(run.iter().copied().chain(["cat"]), &every)
        .expect(0);
    assert!(back.stdout == every, "{} bytes", back.stdout.len());

    // Unlike a serial line it takes several commands at a time.
    let mut held = user
        .command()
        .args(["--target", &target, "run", "--rm", "-i"])
        .args(["container-base", "sh", "-c", "echo up; cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut up = [0; 3];
    std::io::Read::read_exact(held.stdout.as_mut().unwrap(), &mut up).unwrap();
    user.run(["--target", &target, "run", "--rm", "container-base", "true"])
        .expect(0);
    let ended = held.wait_with_output().unwrap();
    assert!(ended.status.success(), "{ended:?}");

    let nobody = format!("{target}:9");
    let refused = user.run(["--target", &nobody, "images"]).expect(3);
    assert!(
        refused.stderr.contains("nobody listens on vsock port 9"),
        "{}",
        refused.stderr
    );
}

/// The processes of the containers below.
const SLEEPERS: &str = "for p in /proc/[0-9]*; do \
    [ \"$(tr '\\0' ' ' <$p/cmdline)\" = 'sleep 1000 ' ] && echo $p; done 2>/dev/null; true";

/// The service's end, and its start.
fn service(board: &mut Board, user: &User, target: &str) {
    let vdkr = |args: &[&str]| user.run(["--target", target].iter().chain(args).copied());
    for (name, policy) in [("stays", "always"), ("ends", "no")] {
        let run = ["run", "-d", "--name", name, "--restart", policy];
        vdkr(&[&run[..], &["container-base", "sleep", "1000"]].concat()).expect(0);
    }
    // The service manager knows whose they are.
    let groups = board.sh(&format!("for p in $({SLEEPERS}); do cat $p/cgroup; done"));
    assert!(groups.contains("vdkr-agent.service/vdkr/"), "{groups}");
    let limited = ["run", "--rm", "-m", "64m", "container-base", "true"];
    vdkr(&limited).expect(0);

    board.sh("systemctl restart vdkr-agent");
    wait_until("the container with a policy", PATIENCE, || {
        let running = vdkr(&["ps"]).expect(0).text();
        assert!(!running.contains("ends"), "{running}");
        running.contains("stays")
    });
    // An agent that is killed leaves nobody behind and comes back.
    board.sh("systemctl kill --kill-whom=main -s KILL vdkr-agent");
    wait_until("the container after a crash", PATIENCE, || {
        vdkr(&["ps"]).expect(0).text().contains("stays")
    });
    let left = board.sh(SLEEPERS);
    assert_eq!(left.lines().count(), 1, "not only the new one: {left}");
    vdkr(&["rm", "-f", "stays", "ends"]).expect(0);
    let mounts = board.sh("cat /proc/self/mountinfo");
    assert!(!mounts.contains("/var/lib/vdkr"), "{mounts}");
    board.sh("systemctl stop vdkr-agent");
    let gone = user
        .command()
        .args(["--target", target, "images"])
        .output()
        .unwrap();
    assert_eq!(gone.status.code(), Some(3), "{gone:?}");
}

#[test]
fn registry_ca_and_login_in_the_image_of_a_small_vm_need_no_option() {
    let secured = Secured::start();
    let registry = &secured.registry;
    let logins = secured.dir.path().join("logins.json");
    fs::write(&logins, secured.logins(&registry.host())).unwrap();
    fs::set_permissions(&logins, fs::Permissions::from_mode(0o600)).unwrap();
    let root = secured.dir.path().join("root");
    fs::create_dir(&root).unwrap();
    registry
        .run([
            "bake",
            "--profile",
            "vdkr",
            "--rootfs",
            root.to_str().unwrap(),
            "--authfile",
            logins.to_str().unwrap(),
        ])
        .expect(0);

    // With what was baked beside the image this computer pulls for the machine; else the machine does.
    for beside in [true, false] {
        baked_registry(&secured, &root, beside);
    }
}

fn baked_registry(secured: &Secured, root: &Path, beside: bool) {
    let registry = &secured.registry;
    let user = User::new("x86_64");
    let images = user.home().join("images");
    image_with(root, &images.join("x86_64"));
    if beside {
        let place = images.join("x86_64/baked");
        run_within(tool("cp").arg("-a").args([root, &place]), b"", PATIENCE).expect(0);
    }
    let blobs = images.to_str().unwrap();
    let vdkr = |args: &[&str]| {
        let first = ["--accel", "tcg", "--blob-dir", blobs];
        user.run(first.iter().chain(args).copied())
    };
    vdkr(&["memres", "start"]).expect(0);
    let pulled = vdkr(&["pull", "container-base"]).expect(0).text();
    let name = format!("10.0.2.2:{}/yocto/container-base", registry.port());
    assert_eq!(pulled.trim(), format!("{name}:latest"));
    let cached = fs::read_dir(user.home().join(".vdkr/layers/sha256"));
    let cached = cached.map_or(0, Iterator::count);
    assert_eq!(cached > 0, beside, "{cached} layers on this computer");
    let ran = vdkr(&["run", "--rm", "container-base", "echo", "baked"]).expect(0);
    assert_eq!(ran.text(), "baked\n");
    // An image that is not there is pulled by `run` as well, by the registry's name or without.
    vdkr(&["rmi", &name]).expect(0);
    vdkr(&["run", "--rm", "container-base", "true"]).expect(0);
    vdkr(&["rmi", &name]).expect(0);
    vdkr(&["run", "--rm", &name, "true"]).expect(0);
    // What the command says wins.
    let ca = registry.storage().join("pki/ca.crt");
    let host = format!("{}/yocto", registry.host());
    let wrong = ["--registry-user", "yocto", "--registry-password", "wrong"];
    let registries = ["--registry", &host, "--ca-cert", ca.to_str().unwrap()];
    vdkr(&[&registries[..], &wrong, &["pull", "container-base"]].concat()).expect(4);
    // Another registry has neither the trust nor the login that was baked for this one.
    let other = Secured::start();
    let prefix = format!("{}/yocto", other.registry.host());
    let ca = other.registry.storage().join("pki/ca.crt");
    let ca = ca.to_str().unwrap();
    let secure = ["--registry", &prefix, "--secure-registry"];
    let pull = ["pull", "-q", "container-base"];
    for place in ["host", "guest"] {
        let pull_in = ["--pull-in", place];
        let untrusted = vdkr(&[&secure[..], &pull_in, &pull].concat()).expect(3);
        assert!(
            untrusted.stderr.contains("invalid peer certificate"),
            "{}",
            untrusted.stderr
        );
        let with_ca = [&["--registry", &prefix, "--ca-cert", ca][..], &pull_in].concat();
        vdkr(&[&with_ca[..], &pull].concat()).expect(4);
        let password = other.file("auth/password");
        let login = [
            "--registry-user",
            "yocto",
            "--registry-password",
            password.trim(),
        ];
        let pulled = vdkr(&[&with_ca[..], &login, &pull].concat())
            .expect(0)
            .text();
        let theirs = format!(
            "10.0.2.2:{}/yocto/container-base:latest",
            other.registry.port()
        );
        assert_eq!(pulled.trim(), theirs);
        vdkr(&["rmi", &theirs]).expect(0);
    }
    // And the machine's own is asked again when nobody is named.
    let pulled = vdkr(&["pull", "container-base"]).expect(0).text();
    assert_eq!(pulled.trim(), format!("{name}:latest"));
    // Nothing of it is on the host's command lines, nor in the container's record.
    let password = secured.file("auth/password");
    let shown = vdkr(&["info"]).expect(0);
    assert!(!shown.text().contains(password.trim()));
    if beside {
        let own = format!("localhost:{}/yocto", registry.port());
        assert!(shown.text().contains(&own), "{}", shown.text());
        // The same registry, CA and login take what is pushed.
        let pushed = format!("{}/yocto/pushed:1", registry.host());
        vdkr(&["tag", &name, &pushed]).expect(0);
        vdkr(&["push", &pushed]).expect(0);
    }
    vdkr(&["memres", "stop"]).expect(0);
}

/// The VM's image with the files of a directory.
fn image_with(root: &Path, place: &Path) {
    let image = image_dir("x86_64");
    fs::create_dir_all(place).unwrap();
    for name in ["kernel", "vm.json"] {
        fs::copy(image.join(name), place.join(name)).unwrap();
    }
    let mut files = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
                continue;
            }
            let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            let name = path.strip_prefix(root).unwrap().to_str().unwrap();
            files.push((name.to_owned(), mode, fs::read(&path).unwrap()));
        }
    }
    assert!(!files.is_empty());
    let mut initramfs = fs::read(image.join("initramfs")).unwrap();
    initramfs.extend(newc::archive(&files));
    fs::write(place.join("initramfs"), initramfs).unwrap();
}
