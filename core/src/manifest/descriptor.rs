use alloc::{collections::BTreeMap, string::String, vec::Vec};
use core::fmt;

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error as _, MapAccess, Visitor, value::MapAccessDeserializer},
};

use super::{annotations, null_is_default};
use crate::base64;
use crate::digest::Digest;
use crate::platform::Platform;

/// Longest media type in bytes (RFC 6838 allows 127 on each side of the slash).
const MAX_MEDIA_TYPE: usize = 255;
/// Largest size in bytes: the specification's `int64`.
const MAX_SIZE: u64 = i64::MAX as u64;

/// A pointer to content: what it is, its digest and its size (OCI image specification,
/// "Descriptor").
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", remote = "Self")]
pub struct Descriptor {
    /// Media type of the content.
    #[serde(deserialize_with = "media_type")]
    pub media_type: String,
    /// Digest of the content.
    pub digest: Digest,
    /// Size of the content in bytes.
    #[serde(deserialize_with = "size")]
    pub size: u64,
    /// Other places of the content. Never followed on their own.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub urls: Vec<String>,
    /// Annotations.
    #[serde(
        default,
        deserialize_with = "annotations",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub annotations: BTreeMap<String, String>,
    /// The content itself, base64; see [`embedded`](Self::embedded).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// The platform of an entry of an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// The artifact type of the manifest that this points to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
}

impl Descriptor {
    /// A descriptor with the three required fields.
    pub fn new(media_type: impl Into<String>, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.into(),
            digest,
            size,
            urls: Vec::new(),
            annotations: BTreeMap::new(),
            data: None,
            platform: None,
            artifact_type: None,
        }
    }

    /// The content in the `data` field, when it is there and has the digest and the size that this
    /// descriptor promises; a field that does not is as good as none.
    pub fn embedded(&self) -> Option<Vec<u8>> {
        let data = base64::decode(self.data.as_deref()?.as_bytes())?;
        let promised = data.len() as u64 == self.size
            && Digest::of(self.digest.algorithm(), &data) == self.digest;
        promised.then_some(data)
    }
}

impl Serialize for Descriptor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

/// Takes an object only: the derived reader would also take an array of the fields' values.
impl<'de> Deserialize<'de> for Descriptor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Descriptor;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a descriptor")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Descriptor, A::Error> {
                Descriptor::deserialize(MapAccessDeserializer::new(map))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

fn media_type<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    let legal = text.len() <= MAX_MEDIA_TYPE
        && text
            .bytes()
            .all(|byte| byte.is_ascii_graphic() || byte == b' ')
        && text
            .split_once('/')
            .is_some_and(|(kind, name)| !kind.is_empty() && !name.is_empty());
    if legal {
        Ok(text)
    } else {
        Err(D::Error::custom(
            "a descriptor's mediaType is no media type",
        ))
    }
}

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let size = u64::deserialize(deserializer)?;
    if size > MAX_SIZE {
        return Err(D::Error::custom(
            "a descriptor's size is larger than an int64 holds",
        ));
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use alloc::{format, string::ToString};

    use super::*;

    fn read(json: &str) -> Result<Descriptor, serde_json::Error> {
        serde_json::from_str(json)
    }

    #[test]
    fn embedded_data_is_believed_only_when_it_matches() {
        let empty = Descriptor {
            data: Some("e30=".into()),
            ..Descriptor::new(
                "application/vnd.oci.empty.v1+json",
                Digest::sha256(b"{}"),
                2,
            )
        };
        assert_eq!(empty.embedded().as_deref(), Some(&b"{}"[..]));
        let wrong_size = Descriptor {
            size: 3,
            ..empty.clone()
        };
        assert_eq!(wrong_size.embedded(), None);
        let wrong_bytes = Descriptor {
            data: Some("e30x".into()),
            size: 3,
            ..empty.clone()
        };
        assert_eq!(wrong_bytes.embedded(), None);
        let no_base64 = Descriptor {
            data: Some("e3".into()),
            ..empty.clone()
        };
        assert_eq!(no_base64.embedded(), None);
        assert_eq!(
            Descriptor {
                data: None,
                ..empty
            }
            .embedded(),
            None
        );
    }

    #[test]
    fn fields_are_checked() {
        let digest = Digest::sha256(b"x");
        let json = |media_type: &str, digest: &str, size: &str| {
            format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{size}}}"#)
        };
        let good = read(&json("a/b", digest.as_str(), "0")).unwrap();
        assert_eq!(good, Descriptor::new("a/b", digest.clone(), 0));
        let largest = i64::MAX.to_string();
        assert_eq!(
            read(&json("a/b", digest.as_str(), &largest)).unwrap().size,
            MAX_SIZE
        );
        for bad in [
            json("a/b", "sha256:../../../etc/passwd", "1"),
            json("a/b", &digest.as_str().to_uppercase(), "1"),
            json("a/b", digest.as_str(), "-1"),
            json("a/b", digest.as_str(), "1.5"),
            json("a/b", digest.as_str(), "9223372036854775808"),
            json("a/b", digest.as_str(), "1e400"),
            json("a/b", digest.as_str(), "\"1\""),
            json("", digest.as_str(), "1"),
            json("a", digest.as_str(), "1"),
            json("a/", digest.as_str(), "1"),
            json("a/\\u0000", digest.as_str(), "1"),
            json(&"a/".repeat(200), digest.as_str(), "1"),
            format!(r#"{{"digest":"{digest}","size":1}}"#),
            format!(r#"["a/b","{digest}",1]"#),
            format!(r#"{{"mediaType":"a/b","digest":"{digest}","size":1,"size":2}}"#),
        ] {
            assert!(read(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn null_is_as_good_as_absent() {
        let digest = Digest::sha256(b"x");
        let json = format!(
            r#"{{"mediaType":"a/b","digest":"{digest}","size":1,"urls":null,"annotations":null,
                "platform":null,"data":null,"artifactType":null,"later":[{{}}]}}"#
        );
        assert_eq!(read(&json).unwrap(), Descriptor::new("a/b", digest, 1));
    }
}
