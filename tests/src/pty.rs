//! A terminal with a program on it, as a user has it.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, Winsize, tcgetattr, tcsetwinsize};

/// What a busy machine may take for anything.
const PATIENCE: Duration = Duration::from_mins(4);

/// A terminal and the program that has it. What the program shows is collected.
#[derive(Debug)]
pub struct Terminal {
    master: File,
    /// Keeps the terminal when the program has gone.
    slave: File,
    child: Child,
    shown: Arc<Mutex<Vec<u8>>>,
    /// What was looked at.
    seen: usize,
    before: Termios,
}

impl Terminal {
    /// Starts a program on a terminal of this size, which is its controlling one.
    #[track_caller]
    pub fn start(command: &Command, rows: u16, columns: u16) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&master).expect("the right to the terminal");
        unlockpt(&master).expect("an unlocked terminal");
        let name = ptsname(&master, Vec::new()).expect("the terminal's name");
        let slave = File::options()
            .read(true)
            .write(true)
            .custom_flags(nix::libc::O_NOCTTY)
            .open(name.to_str().expect("a path"))
            .expect("the terminal");
        set_size(&master, rows, columns);
        let before = tcgetattr(&slave).expect("the terminal's modes");
        let mut under = Command::new("setsid");
        under.args(["--ctty", "--wait"]).arg(command.get_program());
        under.args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => under.env(name, value),
                None => under.env_remove(name),
            };
        }
        let end = || slave.try_clone().expect("the terminal again");
        let child = under
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {under:?}: {error}"));
        let master = File::from(master);
        let shown = Arc::new(Mutex::new(Vec::new()));
        let mut reader = master.try_clone().expect("the terminal again");
        let collected = shown.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // An error is the end of the terminal.
            while let Ok(length @ 1..) = reader.read(&mut buffer) {
                let mut shown = collected.lock().expect("what was shown");
                shown.extend_from_slice(&buffer[..length]);
            }
        });
        Self {
            master,
            slave,
            child,
            shown,
            seen: 0,
            before,
        }
    }

    /// Types keys.
    #[track_caller]
    pub fn keys(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).expect("typed keys");
    }

    /// Waits until a text is shown, behind the last one that was waited for.
    #[track_caller]
    pub fn until(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let shown = self.shown.lock().expect("what was shown").clone();
            let found = shown[self.seen..]
                .windows(text.len())
                .position(|part| part == text.as_bytes());
            if let Some(at) = found {
                self.seen += at + text.len();
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{text:?} was not shown, but {:?}",
                String::from_utf8_lossy(&shown)
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// All that was shown so far, with what it is shown by: colours, the cursor's ways.
    #[track_caller]
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().expect("what was shown")).into_owned()
    }

    /// Gives the window another size.
    #[track_caller]
    pub fn resize(&self, rows: u16, columns: u16) {
        set_size(&self.master, rows, columns);
    }

    /// Whether every key is passed on as it is.
    #[track_caller]
    pub fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.slave).expect("the terminal's modes");
        !modes.local_modes.contains(LocalModes::ICANON)
    }

    /// Waits for the program's end, and that it has left the terminal as it was.
    #[track_caller]
    pub fn ended(mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("wait for a child") {
                break status;
            }
            let shown = self.shown.lock().expect("what was shown").clone();
            assert!(
                Instant::now() < deadline,
                "the program goes on; it showed {:?}",
                String::from_utf8_lossy(&shown)
            );
            std::thread::sleep(Duration::from_millis(20));
        };
        let after = tcgetattr(&self.slave).expect("the terminal's modes");
        let modes = |termios: &Termios| {
            let flags = (termios.input_modes, termios.output_modes);
            format!(
                "{flags:?} {:?} {:?}",
                termios.control_modes, termios.local_modes
            )
        };
        assert_eq!(modes(&after), modes(&self.before), "the terminal's modes");
        status
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[track_caller]
fn set_size(master: &impl std::os::fd::AsFd, rows: u16, columns: u16) {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(master.as_fd(), size).expect("the window's size");
}
