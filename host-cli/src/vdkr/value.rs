//! Values that a user can set: what they have to look like.

use vdkr_core::{candidates::RegistryPrefix, reference::Host};

/// Least memory of a machine, in MiB.
const MIN_MEMORY: u32 = 128;

/// The words of a list separated by commas or blanks.
pub fn list(text: &str) -> Vec<String> {
    let words = text.split([',', ' ', '\t']);
    words
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

/// An entry of the insecure list: a host, or a network such as `10.0.0.0/8`.
pub fn check_insecure(entry: &str) -> Result<(), String> {
    let network = entry.split_once('/').is_some_and(|(address, bits)| {
        address.parse::<std::net::IpAddr>().is_ok() && bits.parse::<u8>().is_ok_and(|b| b <= 128)
    });
    if network {
        return Ok(());
    }
    Host::parse(entry)
        .map(drop)
        .map_err(|error| format!("{entry:?} is not a host: {error}"))
}

/// A mirrored host and the URLs of its mirrors.
pub fn check_mirror(host: &str, urls: &[String]) -> Result<(), String> {
    Host::parse(host).map_err(|error| format!("{host:?} is not a host: {error}"))?;
    if urls.is_empty() {
        return Err(format!("no URL given for {host}"));
    }
    for url in urls {
        if !url.starts_with("http://") && !url.starts_with("https://") {
            return Err(format!(
                "{url:?} is not a URL: it has to start with http:// or https://"
            ));
        }
        if url.contains('@') {
            return Err("a mirror's URL must not hold credentials".to_owned());
        }
        RegistryPrefix::parse(url).map_err(|error| format!("{url:?} is not a URL: {error}"))?;
    }
    Ok(())
}

/// Reads `true` or `false`, also as `1` or `0`, `yes` or `no`.
pub fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "true" | "1" | "yes" => Ok(true),
        "false" | "0" | "no" => Ok(false),
        other => Err(format!("{other:?} is neither true nor false")),
    }
}

/// Reads the value of a switch, in the words that docker takes.
pub fn parse_switch(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("it is neither true nor false".to_owned()),
    }
}

/// Reads an amount of memory (`512`, `512M`, `2G`) and gives MiB.
pub fn parse_memory(text: &str) -> Result<u32, String> {
    let mib = mebibytes(text)
        .ok_or_else(|| format!("{text:?} is not an amount of memory such as 512M or 2G"))?;
    if mib < MIN_MEMORY {
        return Err(format!(
            "{text} is too little memory; a machine needs {MIN_MEMORY}M"
        ));
    }
    Ok(mib)
}

/// Reads an amount of room on a disk, in the same forms, and gives MiB.
pub fn parse_room(text: &str) -> Result<u32, String> {
    mebibytes(text).ok_or_else(|| format!("{text:?} is not a size such as 512M or 20G"))
}

fn mebibytes(text: &str) -> Option<u32> {
    let (number, factor) = match text.char_indices().next_back()? {
        (at, 'm' | 'M') => (text.get(..at)?, 1),
        (at, 'g' | 'G') => (text.get(..at)?, 1024),
        _ => (text, 1),
    };
    number.parse::<u32>().ok()?.checked_mul(factor)
}

/// Reads a number of seconds.
pub fn parse_seconds(text: &str) -> Result<u64, String> {
    match text.strip_suffix('s').unwrap_or(text).parse::<u32>() {
        Ok(seconds) => Ok(seconds.into()),
        Err(_) => Err(format!("{text:?} is not a number of seconds")),
    }
}

/// A path that means the same wherever the program is called.
pub fn absolute(text: &str) -> Result<String, String> {
    if text.starts_with('/') || text == "~" || text.starts_with("~/") {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} is not an absolute path"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts() {
        assert_eq!(parse_memory("512"), Ok(512));
        assert_eq!(parse_memory("512m"), Ok(512));
        assert_eq!(parse_memory("2G"), Ok(2048));
        assert!(parse_memory("").is_err() && parse_memory("é").is_err());
        assert_eq!(parse_room("4M"), Ok(4));
        assert_eq!(parse_room("20G"), Ok(20 << 10));
        assert_eq!(parse_room("0"), Ok(0));
        for wrong in ["", "é", "M", "1T", "-1", "4194304G"] {
            assert!(parse_room(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse_seconds("90s"), Ok(90));
    }
}
