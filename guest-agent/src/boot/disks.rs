//! Disks by the serial number that the host gave them. Most are attached while the machine runs.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

/// Where the kernel lists its disks.
const BLOCK_DIR: &str = "/sys/block";
/// How often a disk is looked for that the host has attached and the kernel has yet to see.
const PAUSE: Duration = Duration::from_millis(1);
/// Header of the page with a SCSI disk's serial number: the length is in its last two bytes.
const PAGE_HEADER: usize = 4;

/// The device of the disk with this serial number, when the kernel has it already.
pub fn find(serial: &str) -> Option<PathBuf> {
    fs::read_dir(BLOCK_DIR).ok()?.flatten().find_map(|disk| {
        (serial_of(&disk.path())?.as_slice() == serial.as_bytes())
            .then(|| Path::new("/dev").join(disk.file_name()))
    })
}

/// The serial numbers of the disks that have one, in order.
pub fn serials() -> Vec<String> {
    let disks = fs::read_dir(BLOCK_DIR).into_iter().flatten().flatten();
    let mut serials: Vec<_> = disks
        .filter_map(|disk| String::from_utf8(serial_of(&disk.path())?).ok())
        .filter(|serial| !serial.is_empty())
        .collect();
    serials.sort();
    serials
}

/// Waits for a disk that the host has just attached. Blocks the thread.
pub fn wait_for(serial: &str, patience: Duration) -> io::Result<PathBuf> {
    let deadline = Instant::now() + patience;
    loop {
        // The name in sysfs is there a moment before the device can be opened.
        if let Some(device) = find(serial).filter(|device| fs::File::open(device).is_ok()) {
            return Ok(device);
        }
        if Instant::now() >= deadline {
            let text = format!("the host's disk {serial} did not appear");
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        sleep(PAUSE);
    }
}

fn serial_of(disk: &Path) -> Option<Vec<u8>> {
    if let Ok(serial) = fs::read(disk.join("serial")) {
        return Some(serial.trim_ascii().to_vec());
    }
    parse_serial_page(&fs::read(disk.join("device/vpd_pg80")).ok()?)
}

/// The serial number in page 80h of a SCSI disk's vital product data.
fn parse_serial_page(page: &[u8]) -> Option<Vec<u8>> {
    let (header, rest) = page.split_at_checked(PAGE_HEADER)?;
    let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    (header[1] == 0x80).then(|| rest.get(..length).map(|text| text.trim_ascii().to_vec()))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_pages() {
        let page = b"\x00\x80\x00\x0avdkr-state".to_vec();
        assert_eq!(parse_serial_page(&page).unwrap(), b"vdkr-state");
        let padded = b"\x00\x80\x00\x06  ab  junk";
        assert_eq!(parse_serial_page(padded).unwrap(), b"ab");
        // Another page, and one that is shorter than it says.
        assert_eq!(parse_serial_page(b"\x00\x83\x00\x01a"), None);
        for length in 0..page.len() {
            assert_eq!(parse_serial_page(&page[..length]), None);
        }
    }

    #[test]
    fn a_disk_that_does_not_come_is_not_waited_for_for_ever() {
        let error = wait_for("no-such-serial", Duration::from_millis(5)).unwrap_err();
        assert!(error.to_string().contains("no-such-serial"), "{error}");
    }
}
