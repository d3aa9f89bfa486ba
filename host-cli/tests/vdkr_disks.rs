//! Disks that come and go while a real machine runs, booted and restored.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
    time::{Duration, Instant},
};

use vdkr_core::channel::message::{DiskRequest, Info, MachineState, Reply, Request};
use vdkr_host::vm::{channel::Connection, kept};

/// What a busy machine may take for anything.
const PATIENCE: Duration = Duration::from_mins(3);

struct User {
    home: tempfile::TempDir,
}

impl User {
    fn vdkr(&self, snapshot: bool, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vdkr"));
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("VDKR_") || text.starts_with("XDG_") {
                command.env_remove(name);
            }
        }
        command
            .env("HOME", self.home.path())
            .env("VDKR_SNAPSHOT", snapshot.to_string())
            .args(["-a", "x86_64", "--accel", "tcg"])
            .args(args);
        command.output().unwrap()
    }

    fn state_dir(&self) -> std::path::PathBuf {
        self.home.path().join(".vdkr/x86_64")
    }
}

impl Drop for User {
    fn drop(&mut self) {
        // A machine must not outlive its test.
        self.vdkr(true, &["memres", "stop"]);
    }
}

async fn ask(connection: &Connection, request: Request) -> Result<Reply, String> {
    let done = connection.ask(&request).await.unwrap();
    done.map_err(|failure| failure.message)
}

async fn info(connection: &Connection) -> Info {
    match ask(connection, Request::Info).await {
        Ok(Reply::Info(info)) => info,
        other => panic!("{other:?}"),
    }
}

/// Waits until the guest sees exactly these disks beside its state.
async fn seen(connection: &Connection, wanted: &[&str]) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = info(connection).await.disks;
        let others: Vec<_> = found.iter().filter(|disk| *disk != "vdkr-state").collect();
        if others == wanted {
            return;
        }
        assert!(Instant::now() < deadline, "{found:?}, not {wanted:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn attach(path: &Path, serial: &str, read_only: bool) -> Request {
    Request::AttachDisk(DiskRequest {
        path: path.to_str().unwrap().to_owned(),
        serial: serial.to_owned(),
        read_only,
    })
}

#[tokio::test]
async fn a_kept_machine_takes_disks_and_gives_them_back() {
    let user = User {
        home: tempfile::tempdir().unwrap(),
    };
    let image = user.home.path().join("a, \"layer\".img");
    fs::write(&image, vec![1; 1 << 20]).unwrap();
    let sealed = user.home.path().join("sealed.img");
    fs::write(&sealed, vec![2; 1 << 20]).unwrap();
    let mut permissions = fs::metadata(&sealed).unwrap().permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&sealed, permissions).unwrap();

    for snapshot in [false, true] {
        let started = user.vdkr(snapshot, &["memres", "start"]);
        assert!(started.status.success(), "{started:?}");
        let connection = kept::connect(&user.state_dir()).await.unwrap().unwrap();
        let restored = user.home.path().join(".cache/vdkr/snapshots").exists();
        assert_eq!(restored, snapshot);

        let serial = "layer-0123456789abcdef0123456789";
        for request in [
            attach(&image, "rw", false),
            attach(&sealed, serial, true),
            attach(&sealed, serial, true),
        ] {
            assert_eq!(ask(&connection, request).await, Ok(Reply::Attached));
        }
        seen(&connection, &[serial, "rw"]).await;
        // One more client sees the same; another file does not get the number.
        let second = kept::connect(&user.state_dir()).await.unwrap().unwrap();
        let taken = ask(&second, attach(&image, serial, true)).await;
        assert!(taken.unwrap_err().contains("sealed.img"));
        let missing = ask(&second, attach(Path::new("/nonexistent"), "m", true)).await;
        assert!(missing.unwrap_err().contains("/nonexistent"));
        let Ok(Reply::Machine(MachineState { disks, .. })) = ask(&second, Request::Machine).await
        else {
            panic!("no state");
        };
        assert_eq!(disks, ["rw", serial]);

        for serial in [serial, "rw", "never-there"] {
            let serial = serial.to_owned();
            let gone = ask(&second, Request::DetachDisk { serial }).await;
            assert_eq!(gone, Ok(Reply::Detached));
        }
        seen(&connection, &[]).await;
        // A number is free again; thirty at once are no trouble.
        let many: Vec<String> = (0..30).map(|number| format!("disk-{number:02}")).collect();
        for serial in &many {
            let answer = ask(&connection, attach(&sealed, serial, true)).await;
            assert_eq!(answer, Ok(Reply::Attached));
        }
        seen(
            &connection,
            &many.iter().map(String::as_str).collect::<Vec<_>>(),
        )
        .await;
        let stopped = user.vdkr(snapshot, &["memres", "stop"]);
        assert!(stopped.status.success(), "{stopped:?}");
    }
}
