//! Kernel modules from the initramfs, in the order of a list made with the image.

use std::{
    fs::{self, File},
    path::Path,
};

use rustix::io::Errno;

/// Directory of the modules and their list in the initramfs.
pub const DIR: &str = "/modules";
/// File names, one a line, dependencies first.
const LIST: &str = "load.list";
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
    text.lines().map(str::trim).filter(|line| {
        !line.is_empty() && !line.starts_with('#') && !line.contains('/') && *line != ".."
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
    fn compression_shows_in_the_name() {
        assert!(is_compressed(Path::new("a.ko.xz")));
        assert!(!is_compressed(Path::new("a.ko")));
    }
}
