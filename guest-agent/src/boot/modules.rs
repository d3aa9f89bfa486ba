//! Kernel modules from the initramfs, in the order of lists made with the image: some at the
//! start, some when they are needed first.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use rustix::io::Errno;

/// Directory of the modules and their list in the initramfs.
pub const DIR: &str = "/modules";
/// File names, one a line, dependencies first.
const LIST: &str = "load.list";
/// What is loaded when it is needed: a line for each, its name and its files, dependencies first.
const LATER: &str = "later.list";
/// `MODULE_INIT_COMPRESSED_FILE` of `finit_module`.
const COMPRESSED: i32 = 4;

/// Loads what the list names. A missing list means that the kernel has everything built in; a
/// module that cannot be loaded is reported and left out.
pub fn load_all(dir: &Path) {
    let Ok(list) = fs::read_to_string(dir.join(LIST)) else {
        return;
    };
    for name in parse_list(&list) {
        match load(&dir.join(name)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => eprintln!("vdkr-agent: module {name}: {error}"),
        }
    }
}

/// Loads what a line of the second list names. Nothing happens when there is none: the kernel may
/// have it built in, or a full system loads it by itself.
pub fn load_later(dir: &Path, wanted: &str) -> io::Result<()> {
    let Ok(list) = fs::read_to_string(dir.join(LATER)) else {
        return Ok(());
    };
    for (_, files) in parse_later(&list).filter(|(name, _)| *name == wanted) {
        for file in files {
            match load(&dir.join(file)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => {
                    let error = io::Error::from(error);
                    let text = format!("load the module {file}: {error}");
                    return Err(io::Error::new(error.kind(), text));
                }
            }
        }
    }
    Ok(())
}

/// Copies what may be needed later to `to`.
pub fn keep_later(dir: &Path, to: &Path) -> io::Result<()> {
    let Ok(list) = fs::read_to_string(dir.join(LATER)) else {
        return Ok(());
    };
    fs::create_dir_all(to)?;
    for (_, files) in parse_later(&list) {
        for file in files {
            fs::copy(dir.join(file), to.join(file))?;
        }
    }
    fs::write(to.join(LATER), list)
}

fn load(path: &Path) -> Result<(), Errno> {
    let file =
        File::open(path).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    let flags = if is_compressed(path) { COMPRESSED } else { 0 };
    rustix::system::finit_module(&file, c"", flags)
}

fn is_compressed(path: &Path) -> bool {
    path.extension()
        .is_some_and(|ext| ["xz", "zst", "gz"].iter().any(|known| ext == *known))
}

/// The names in a list: one a line; empty lines and those that begin with `#` are skipped, as is
/// everything that is no plain file name.
pub fn parse_list(text: &str) -> impl Iterator<Item = &str> {
    parse_lines(text).filter(|line| is_file_name(line))
}

fn parse_lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn is_file_name(text: &str) -> bool {
    !text.contains('/') && text != ".."
}

/// Names and their files in the second list, by the same rules.
fn parse_later(text: &str) -> impl Iterator<Item = (&str, impl Iterator<Item = &str>)> {
    parse_lines(text).filter_map(|line| {
        let mut words = line.split_whitespace();
        let name = words.next()?;
        Some((name, words.filter(|word| is_file_name(word))))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_keep_their_order_and_name_files_only() {
        let text = "# order matters\nvirtio.ko\n\n  virtio_ring.ko  \n../../init\n..\nb.ko.xz\r\n";
        let names: Vec<_> = parse_list(text).collect();
        assert_eq!(names, ["virtio.ko", "virtio_ring.ko", "b.ko.xz"]);
    }

    #[test]
    fn what_comes_later_is_kept_with_its_list() {
        let text = "# none\n\nfuse fuse.ko\nveth a.ko ../b.ko /c.ko d.ko\nalone\n";
        let lines: Vec<(&str, Vec<&str>)> = parse_later(text)
            .map(|(name, files)| (name, files.collect()))
            .collect();
        assert_eq!(
            lines,
            [
                ("fuse", vec!["fuse.ko"]),
                ("veth", vec!["a.ko", "d.ko"]),
                ("alone", vec![])
            ]
        );

        let place = tempfile::tempdir().unwrap();
        let (from, to) = (place.path().join("from"), place.path().join("to"));
        fs::create_dir(&from).unwrap();
        keep_later(&from, &to).unwrap();
        assert!(!to.exists());
        for (name, content) in [
            (LATER, "fuse fuse.ko\n"),
            ("fuse.ko", "x"),
            ("virtio.ko", "y"),
        ] {
            fs::write(from.join(name), content).unwrap();
        }
        keep_later(&from, &to).unwrap();
        assert_eq!(fs::read(to.join("fuse.ko")).unwrap(), b"x");
        assert!(!to.join("virtio.ko").exists());
        load_later(&to, "nothing-of-it").unwrap();
        // No module at all: the kernel says so.
        assert!(load_later(&to, "fuse").is_err());
    }

    #[test]
    fn compression_shows_in_the_name() {
        assert!(is_compressed(Path::new("a.ko.xz")));
        assert!(!is_compressed(Path::new("a.ko")));
    }
}
