//! `vdkr cp`: files and streams, into containers and out of them.

use std::path::Path;

use crate::{text, user};

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

#[test]
fn files_go_in_and_out_and_never_astray() {
    let (_registry, user) = user();
    let user = &user;
    let home = user.home();
    let path = |name: &str| home.join(name).to_str().unwrap().to_owned();
    write(&home.join("site/index.html"), "page");
    write(&home.join("site/sub/.dot"), "dot");
    std::os::unix::fs::symlink("/etc/passwd", home.join("site/link")).unwrap();
    user.run(["create", "--name", "still", "box", "sh", "-c", "sleep 1000"])
        .expect(0);
    user.run([
        "run",
        "-d",
        "--name",
        "live",
        "box",
        "sh",
        "-c",
        "sleep 1000",
    ])
    .expect(0);

    for name in ["still", "live"] {
        // In: a directory as a new one, into one that is there, its content alone, a file.
        user.run(["cp", &path("site"), &format!("{name}:/fresh")])
            .expect(0);
        user.run(["cp", &path("site"), &format!("{name}:/tmp")])
            .expect(0);
        user.run([
            "cp",
            &format!("{}/.", path("site")),
            &format!("{name}:/root"),
        ])
        .expect(0);
        user.run([
            "cp",
            &path("site/index.html"),
            &format!("{name}:/tmp/other"),
        ])
        .expect(0);
        user.run([
            "cp",
            &path("site/index.html"),
            &format!("{name}:/no/such/dir/x"),
        ])
        .expect(5);
        user.run(["cp", &path("nothing"), &format!("{name}:/tmp")])
            .expect(5);
        user.run(["cp", &path("site"), &format!("{name}:/tmp/other")])
            .expect(2);
        // Out again.
        let out = path(&format!("out-{name}"));
        user.run(["cp", &format!("{name}:/fresh"), &out]).expect(0);
        assert_eq!(
            std::fs::read_to_string(format!("{out}/sub/.dot")).unwrap(),
            "dot"
        );
        assert_eq!(
            std::fs::read_link(format!("{out}/link")).unwrap(),
            Path::new("/etc/passwd")
        );
        user.run(["cp", &format!("{name}:/tmp/site"), &out])
            .expect(0);
        assert!(Path::new(&format!("{out}/site/index.html")).is_file());
        user.run([
            "cp",
            &format!("{name}:/root/index.html"),
            &format!("{out}/renamed"),
        ])
        .expect(0);
        assert_eq!(
            std::fs::read_to_string(format!("{out}/renamed")).unwrap(),
            "page"
        );
        user.run(["cp", &format!("{name}:/tmp/other"), &out])
            .expect(0);
        assert_eq!(
            std::fs::read_to_string(format!("{out}/other")).unwrap(),
            "page"
        );
        user.run(["cp", &format!("{name}:/nothing"), &out])
            .expect(5);
        // As streams.
        let tar = user
            .run(["cp", &format!("{name}:/fresh"), "-"])
            .expect(0)
            .stdout;
        assert!(
            tar.len() % 512 == 0 && tar.starts_with(b"fresh/"),
            "{} bytes",
            tar.len()
        );
        user.run_with_input(["cp", "-", &format!("{name}:/tmp/site")], &tar)
            .expect(0);
        user.run_with_input(["cp", "-", &format!("{name}:/tmp/site")], &tar[..700])
            .expect(1);
        let tar = user
            .run(["cp", &format!("{name}:/tmp/site/fresh/index.html"), "-"])
            .expect(0)
            .stdout;
        assert!(tar.starts_with(b"index.html\0"));
    }
    let owner = text(
        user,
        &["exec", "live", "stat", "-c", "%u:%g", "/fresh/index.html"],
    );
    assert_eq!(owner, "0:0\n");

    // Links of a container lead nowhere but into it, and those of the target are not followed.
    user.run([
        "exec",
        "live",
        "sh",
        "-c",
        "ln -s / /tmp/root; ln -s /etc/hostname /tmp/name",
    ])
    .expect(0);
    let out = path("astray");
    user.run(["cp", "-L", "live:/tmp/name", &out]).expect(0);
    let hostname = text(user, &["exec", "live", "cat", "/etc/hostname"]);
    assert_eq!(std::fs::read_to_string(&out).unwrap(), hostname);
    user.run(["cp", &path("site/index.html"), "live:/tmp/root/through"])
        .expect(0);
    assert_eq!(text(user, &["exec", "live", "cat", "/through"]), "page");
    let big = vec![b'x'; 20_000_000];
    std::fs::write(home.join("big"), &big).unwrap();
    user.run(["cp", &path("big"), "live:/tmp/big"]).expect(0);
    user.run(["cp", "-q", "live:/tmp/big", &path("back")])
        .expect(0);
    assert!(std::fs::read(home.join("back")).unwrap() == big);
    user.run(["rm", "-f", "still", "live"]).expect(0);
}
