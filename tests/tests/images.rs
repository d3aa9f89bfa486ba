//! Images between this computer, the machine and registries: save, load, import, vimport, push,
//! prune, with real archives and one VM for each user.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;
use vdkr_tests::fixtures::{deploy_dir, layout};
use vdkr_tests::peers::skopeo;
use vdkr_tests::process::{run, run_tool};
use vdkr_tests::registry::Registry;
use vdkr_tests::vm::User;

fn filled_registry() -> Registry {
    let registry = Registry::start();
    let deploy = deploy_dir();
    let push = ["push", "--deploy-dir-images", deploy.to_str().unwrap()];
    registry.run(push).expect(0);
    registry
}

fn user_with_vm(place: &str) -> User {
    let user = User::new("x86_64");
    user.run(["vconfig", "pull-in", place]).expect(0);
    user.run(["--accel", "tcg", "memres", "start"]).expect(0);
    user
}

fn id_of(user: &User, name: &str) -> String {
    let ran = user.run(["inspect", "-f", "{{.Id}}", name]).expect(0);
    ran.text().trim().to_owned()
}

fn says_ok(user: &User, name: &str) {
    let ran = user.run(["run", "--rm", "--pull", "never", name, "echo", "ok"]);
    assert_eq!(ran.expect(0).text(), "ok\n");
}

/// The first layer of a layout's image, as it is: compressed.
fn layer_of(layout: &Path) -> std::path::PathBuf {
    let blob = |digest: &Value| {
        let hex = digest.as_str().unwrap().strip_prefix("sha256:").unwrap();
        layout.join("blobs/sha256").join(hex)
    };
    let json = |path: &Path| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    let index = json(&layout.join("index.json"));
    let mut manifest = json(&blob(&index["manifests"][0]["digest"]));
    if let Some(entry) = manifest["manifests"].get(0) {
        manifest = json(&blob(&entry["digest"]));
    }
    blob(&manifest["layers"][0]["digest"])
}

#[test]
fn images_are_saved_loaded_and_removed() {
    saved_loaded_and_removed("host");
}

#[test]
fn images_that_the_machine_unpacks_are_saved_loaded_and_removed() {
    saved_loaded_and_removed("guest");
}

fn saved_loaded_and_removed(place: &str) {
    let registry = filled_registry();
    let user = user_with_vm(place);
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let prefix = format!("{}/yocto", registry.host());
    let stored = format!("10.0.2.2:{}/yocto/container-base", registry.port());

    // Several names; one that is not there does not hide the others.
    let pulled = user.run([
        "--registry",
        &prefix,
        "pull",
        "-q",
        "container-base",
        "no-such",
    ]);
    let pulled = pulled.expect(7);
    assert_eq!(pulled.text(), format!("{stored}:latest\n"));
    let id = id_of(&user, "container-base");
    user.run(["tag", "container-base", "mine:2"]).expect(0);

    // Lists in all forms.
    let shown = user
        .run(["images", "--format", "{{.Repository}}:{{.Tag}}"])
        .expect(0)
        .text();
    let mut lines: Vec<&str> = shown.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, [format!("{stored}:latest"), "mine:2".to_owned()]);
    let json = user
        .run(["image", "list", "--format", "json"])
        .expect(0)
        .text();
    let first: Value = serde_json::from_str(json.lines().next().unwrap()).unwrap();
    assert!(id.contains(first["ID"].as_str().unwrap()), "{json}");
    let only = user.run(["images", "-q", "--no-trunc", "--filter", "reference=min?"]);
    assert_eq!(only.expect(0).text(), format!("{id}\n"));
    assert_eq!(
        user.run(["images", "-q", "-f", "dangling=true"])
            .expect(0)
            .text(),
        ""
    );
    user.run(["images", "--format", "{{.Nonsense}}"]).expect(2);
    user.run(["images", "--filter", "nonsense=1"]).expect(2);
    let history = user
        .run(["history", "--no-trunc", "mine:2"])
        .expect(0)
        .text();
    assert!(
        history.starts_with("IMAGE") && history.contains(&id),
        "{history}"
    );

    // What is saved is what docker and skopeo read, and the same every time.
    user.run(["save", "-o", &at("a.tar"), "mine:2", "container-base"])
        .expect(0);
    let again = user.run([
        "save",
        "mine:2",
        &id["sha256:".len()..][..12],
        "container-base",
    ]);
    assert!(
        again.expect(0).stdout == fs::read(at("a.tar")).unwrap(),
        "not the same bytes"
    );
    for (transport, file) in [("docker-archive", "a.tar"), ("oci-archive", "b.tar")] {
        if transport == "oci-archive" {
            user.run([
                "image",
                "save",
                "--format",
                "oci",
                "-o",
                &at(file),
                "mine:2",
            ])
            .expect(0);
            // skopeo gives directories that it has to make itself to root, which others cannot.
            let members = run_tool("tar", ["--list", "--file", &at(file)]).expect(0);
            let members = members.text();
            assert!(members.starts_with("blobs/\nblobs/sha256/\n"), "{members}");
        }
        let name = if transport == "docker-archive" {
            ":mine:2"
        } else {
            ""
        };
        let source = format!("{transport}:{}{name}", at(file));
        let config = run(skopeo().args(["inspect", "--config", "--raw", &source])).expect(0);
        let digest = run_tool(
            "sh",
            ["-c", "printf %s \"$1\" | sha256sum", "sh", &config.text()],
        );
        let digest = format!(
            "sha256:{}",
            digest.expect(0).text().split(' ').next().unwrap()
        );
        assert_eq!(digest, id, "{transport}");
        let copy = format!("oci:{}", at(&format!("{transport}-copy")));
        run(skopeo().args(["copy", &source, &copy])).expect(0);
    }
    user.run(["save", "mine:2", "nothing"]).expect(5);
    user.run(["save", "-o", &at("c.tar"), "nothing"]).expect(5);
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(left.len(), 4, "a save that failed left something: {left:?}");

    // Out of the archive it is the same image, by the same names.
    user.run(["rmi", "-f", &id]).expect(0);
    assert_eq!(user.run(["images", "-q"]).expect(0).text(), "");
    let loaded = user.run(["load", "-i", &at("a.tar")]).expect(0).text();
    assert!(loaded.contains("Loaded image: mine:2"), "{loaded}");
    assert_eq!(id_of(&user, "mine:2"), id);
    assert_eq!(id_of(&user, "container-base"), id);
    says_ok(&user, "mine:2");
    // Nothing is sent twice.
    let twice = user
        .run(["--progress", "plain", "load", "-i", &at("a.tar")])
        .expect(0);
    assert!(twice.stderr.contains("already present"), "{}", twice.stderr);
    user.run(["rmi", "-f", &id]).expect(0);

    // From standard input, compressed; what skopeo writes too.
    let packed = run_tool("gzip", ["-kc", &at("b.tar")]).stdout;
    let loaded = user
        .run_with_input(["image", "load", "-q"], &packed)
        .expect(0)
        .text();
    assert_eq!(loaded, "Loaded image: mine:2\n");
    user.run(["rmi", "mine:2"]).expect(0);
    let source = format!(
        "oci:{}",
        layout("qemux86-64", "container-base-latest-oci").display()
    );
    let skopeos = format!("docker-archive:{}:from/skopeo:1", at("s.tar"));
    run(skopeo().args(["copy", &source, &skopeos])).expect(0);
    user.run(["load", "-i", &at("s.tar")]).expect(0);
    says_ok(&user, "from/skopeo:1");
    user.run(["rmi", "from/skopeo:1"]).expect(0);

    // What is cut or changed leaves nothing visible.
    let whole = fs::read(at("a.tar")).unwrap();
    fs::write(at("cut.tar"), &whole[..whole.len() / 2]).unwrap();
    user.run(["load", "-i", &at("cut.tar")]).expect(1);
    let mut changed = whole.clone();
    let middle = changed.len() / 2;
    changed[middle] ^= 1;
    fs::write(at("changed.tar"), &changed).unwrap();
    user.run(["load", "-i", &at("changed.tar")]).expect(6);
    let refused = user.run_with_input(["load"], b"no archive");
    assert_eq!(refused.expect(1).text(), "");
    assert_eq!(user.run(["images", "-q"]).expect(0).text(), "");
    user.run(["load", "-i", &at("none.tar")]).expect(5);
    let directory = user
        .run(["load", "-i", dir.path().to_str().unwrap()])
        .expect(2);
    assert!(directory.stderr.contains("vimport"), "{}", directory.stderr);

    // Nothing needs an answer that nobody can give.
    let asked = user.run(["image", "prune"]).expect(2);
    assert!(asked.stderr.contains("--force"), "{}", asked.stderr);
    user.run(["image", "prune", "-f"]).expect(0);
    user.run(["load", "-i", &at("a.tar")]).expect(0);
    assert_eq!(
        user.run(["image", "prune", "-f"]).expect(0).text(),
        "Total reclaimed space: 0B\n"
    );
    let would = user
        .run(["system", "prune", "-a", "--dry-run"])
        .expect(0)
        .text();
    assert!(would.contains(&id), "{would}");
    let old = user
        .run(["image", "prune", "-a", "-f", "--filter", "label=no.such"])
        .expect(0);
    assert!(!old.text().contains("deleted"), "{}", old.text());
    let df = user.run(["system", "df"]).expect(0).text();
    assert!(df.contains("Images") && df.contains("(100%)"), "{df}");
    let pruned = user
        .run_with_input(["image", "prune", "-a"], b"y\n")
        .expect(0)
        .text();
    assert!(pruned.contains(&format!("deleted: {id}")), "{pruned}");
    assert_eq!(user.run(["images", "-q"]).expect(0).text(), "");

    // What the machine is.
    let info = user
        .run(["info", "-f", "{{.Images}} {{.Architecture}}"])
        .expect(0)
        .text();
    assert_eq!(info, "0 amd64\n");
    let version = user.run(["version"]).expect(0).text();
    assert!(
        version.contains("qemu-system-x86_64") && version.contains("Kernel"),
        "{version}"
    );
    user.run(["search", "alpine"]).expect(2);
    let typo = user.run(["imgaes"]).expect(2);
    assert!(
        typo.stderr.contains("did you mean images"),
        "{}",
        typo.stderr
    );
}

#[test]
fn images_come_from_every_form_and_go_to_registries() {
    every_form_and_to_registries("host");
}

#[test]
fn images_that_the_machine_unpacks_come_from_every_form_and_go_to_registries() {
    every_form_and_to_registries("guest");
}

fn every_form_and_to_registries(place: &str) {
    let registry = filled_registry();
    let user = user_with_vm(place);
    let dir = TempDir::new().unwrap();
    let base = layout("qemux86-64", "container-base-latest-oci");
    let text = |path: &Path| path.to_str().unwrap().to_owned();

    // An OCI layout, without a name and with one.
    let imported = user.run(["vimport", &text(&base)]).expect(0);
    assert_eq!(imported.text(), "imported:latest\n");
    says_ok(&user, "imported");
    let id = id_of(&user, "imported");
    // Of several platforms the machine's own.
    let multi = layout("qemux86-64", "container-base-multiarch-oci");
    let imported = user.run(["vimport", &text(&multi), "multi:1"]).expect(0);
    assert!(
        imported.stderr.contains("Selected platform: linux/amd64"),
        "{}",
        imported.stderr
    );
    says_ok(&user, "multi:1");
    // Another architecture is refused, and both are named.
    let other = user.run([
        "vimport",
        &text(&layout("qemuarm64", "container-base-latest-oci")),
    ]);
    let other = other.expect(1);
    assert!(
        other.stderr.contains("arm64") && other.stderr.contains("linux/amd64"),
        "{}",
        other.stderr
    );
    // A deploy directory holds images, and is none.
    let helpful = user
        .run(["vimport", &text(&deploy_dir().join("qemux86-64"))])
        .expect(2);
    assert!(
        helpful.stderr.contains("container-base-latest-oci"),
        "{}",
        helpful.stderr
    );
    user.run(["vimport", &text(&dir.path().join("nowhere"))])
        .expect(5);

    // A root file system: compressed, on standard input, as a directory.
    let layer = layer_of(&base);
    let change = "CMD [\"/bin/echo\", \"changed\"]";
    let made = user.run([
        "import",
        "-c",
        change,
        "-c",
        "ENV A=b",
        &text(&layer),
        "board:1",
    ]);
    let made = made.expect(0).text();
    assert_eq!(made.trim(), id_of(&user, "board:1"));
    let ran = user.run(["run", "--rm", "board:1"]).expect(0);
    assert_eq!(ran.text(), "changed\n");
    let env = user
        .run(["inspect", "-f", "{{json .Config.Env}}", "board:1"])
        .expect(0);
    assert_eq!(env.text(), "[\"A=b\"]\n");
    let bytes = fs::read(&layer).unwrap();
    user.run_with_input(["import", "-", "board:2"], &bytes)
        .expect(0);
    says_ok(&user, "board:2");
    user.run_with_input(["vimport", "-", "board:3"], &bytes)
        .expect(0);
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    run_tool(
        "tar",
        ["-xzf", &text(&layer), "-C", &text(&root), "--exclude=dev/*"],
    )
    .expect(0);
    fs::write(root.join(".hidden"), "kept").unwrap();
    user.run(["vimport", "-c", "WORKDIR /", &text(&root), "board:4"])
        .expect(0);
    let kept = user
        .run(["run", "--rm", "board:4", "cat", "/.hidden"])
        .expect(0);
    assert_eq!(kept.text(), "kept");
    let directory = user.run(["import", &text(&root), "x"]).expect(2);
    assert!(
        directory.stderr.contains("vdkr vimport"),
        "{}",
        directory.stderr
    );
    user.run(["import", "-c", "RUN true", &text(&layer)])
        .expect(2);
    user.run_with_input(["import", "-"], b"BZh91AY").expect(1);
    user.run_with_input(["import", "-"], b"no archive at all")
        .expect(1);

    // To a registry that has none of it: layers are compressed here, the image stays the same.
    let empty = Registry::start();
    let place = format!("{}/team/base", empty.host());
    user.run(["tag", "imported", &format!("{place}:1")])
        .expect(0);
    user.run(["tag", "imported", &format!("{place}:2")])
        .expect(0);
    let pushed = user.run(["push", &format!("{place}:1")]).expect(0).text();
    let digest = pushed.split_whitespace().nth(2).unwrap().to_owned();
    assert!(pushed.starts_with("1: digest: sha256:"), "{pushed}");
    let all = user.run(["push", "-a", &place]).expect(0).text();
    assert_eq!(all.matches(&digest).count(), 2, "{all}");
    let tags = run(skopeo().args([
        "list-tags",
        "--tls-verify=false",
        &format!("docker://{place}"),
    ]));
    assert!(tags.expect(0).text().contains("\"2\""));
    user.run(["rmi", "-f", &id]).expect(0);
    let pulled = user
        .run(["pull", "-q", "--all-tags", &place])
        .expect(0)
        .text();
    assert_eq!(pulled.lines().count(), 2, "{pulled}");
    assert_eq!(
        id_of(&user, &format!("10.0.2.2:{}/team/base:2", empty.port())),
        id
    );
    says_ok(&user, "team/base:1");

    // To the registry that it came from: nothing is sent, the digest stays.
    let prefix = format!("{}/yocto", registry.host());
    let own = ["--registry", &prefix];
    user.run([own[0], own[1], "pull", "container-base"])
        .expect(0);
    let known = user.run([
        "images",
        "--digests",
        "--format",
        "{{.Digest}}",
        "yocto/container-base",
    ]);
    let inspected = user.run([
        "inspect",
        "-f",
        "{{.Descriptor.digest}}",
        "yocto/container-base",
    ]);
    let (known, manifest) = (known.expect(0).text(), inspected.expect(0).text());
    assert!(known.starts_with("sha256:"), "{known}");
    user.run([
        "tag",
        "yocto/container-base",
        &format!("{}/other/copy:1", registry.host()),
    ])
    .expect(0);
    let pushed = user
        .run(["push", &format!("{}/other/copy:1", registry.host())])
        .expect(0);
    assert!(
        pushed.text().contains(manifest.trim()),
        "{} {manifest}",
        pushed.text()
    );
    assert!(!pushed.stderr.contains("compressing"), "{}", pushed.stderr);
    user.run([own[0], own[1], "push", "-q", "yocto/container-base"])
        .expect(0);

    // What cannot be pushed.
    user.run(["push", "nothing:1"]).expect(5);
    user.run(["push", &id]).expect(2);
    user.run(["push", &format!("{place}@{digest}")]).expect(2);
    empty.stop();
    let down = user.run(["push", &format!("{place}:1")]);
    assert!([3, 5].contains(&down.code()), "{down:?}");
}
