//! The image's `VOLUME`s: which of them a container gets, and how they are mounted.
//!
//! Their paths come from whoever made the image: a relative one is below the root, and one that is nowhere, or in
//! /proc, is an error.

use std::path::PathBuf;

use proto::cri;

use super::super::oci::Mount;
use super::super::request::Request;
use super::super::{ImageConfig, SpecError};
use super::destination;
use super::wanted::{bind, check_proc};

const FIELD: &str = "image volume";
/// Most `VOLUME`s of one image.
const MAX_VOLUMES: usize = 64;

/// Places of the anonymous volumes that a container needs: the image's `VOLUME`s, each place once, without those that
/// a mount of the request covers. A volume below such a mount would hide a part of it, and write into its source.
pub fn image_volumes(config: &cri::ContainerConfig, image: &ImageConfig) -> Result<Vec<PathBuf>, SpecError> {
    if image.volumes.len() > MAX_VOLUMES {
        let reason = format!("expected at most {MAX_VOLUMES}, the image has {}", image.volumes.len());
        return Err(SpecError::invalid(FIELD, reason));
    }
    let mounts = config.mounts.iter().filter_map(|mount| destination("", &mount.container_path).ok());
    let mounts: Vec<PathBuf> = mounts.collect();
    let mut places = Vec::new();
    for volume in &image.volumes {
        let place = destination(FIELD, &format!("/{volume}"))?;
        if !places.contains(&place) && !mounts.iter().any(|mount| place.starts_with(mount)) {
            places.push(place);
        }
    }
    Ok(places)
}

/// The mounts of the anonymous volumes.
pub(super) fn of_image(request: &Request<'_>) -> Result<Vec<Mount>, SpecError> {
    let volumes = request.inputs.image_volumes.iter();
    volumes
        .map(|volume| {
            let place = destination(FIELD, &format!("/{}", volume.destination))?;
            check_proc(request, &place)?;
            Ok(bind(place, &volume.source, &["rbind", "rprivate", "rw"]))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::super::ImageVolume;
    use super::super::super::fixture::{Case, bind};
    use super::*;
    use std::path::Path;

    #[test]
    fn volumes_of_the_image_yield_to_mounts_of_the_request() {
        let volumes = |case: &Case| -> Result<Vec<String>, SpecError> {
            let spec = case.generate()?;
            let own = spec.mounts.iter().filter(|m| m.source.starts_with("/volumes"));
            Ok(own.map(|m| m.destination.to_str().unwrap().to_string()).collect())
        };
        let mut case = Case::new();
        let volume = |path: &str| ImageVolume { destination: path.into(), source: "/volumes/1".into() };
        case.image_volumes = vec![volume("/data"), volume("cache"), volume("/../../canary")];
        assert_eq!(volumes(&case).unwrap(), ["/data", "/cache", "/canary"]);
        case.mount(bind("/src", "/data"));
        assert_eq!(volumes(&case).unwrap(), ["/cache", "/canary"]);
        for path in ["", "/", "/..", "/proc", "/proc/1/root"] {
            case.image_volumes = vec![volume(path)];
            assert!(volumes(&case).is_err(), "{path}");
        }
    }

    #[test]
    fn a_container_gets_the_volumes_that_no_mount_covers() {
        let check = |volumes: &[&str], mounts: &[&str], expect: Option<&[&str]>| {
            let mut case = Case::new();
            mounts.iter().for_each(|mount| case.mount(bind("/src", mount)));
            case.image.volumes = volumes.iter().map(|volume| volume.to_string()).collect();
            let got = image_volumes(&case.config, &case.image).ok();
            let expect = expect.map(|places| places.iter().map(PathBuf::from).collect::<Vec<_>>());
            assert_eq!(got, expect, "{volumes:?} {mounts:?}");
        };
        check(&["/data", "/data/", "//data", "/x/../data"], &[], Some(&["/data"]));
        check(&["data", "../etc", "/a/b"], &[], Some(&["/data", "/etc", "/a/b"]));
        check(&["/data", "/data/sub", "/database"], &["/data/"], Some(&["/database"]));
        check(&["/data"], &["/data/sub"], Some(&["/data"]));
        for nowhere in ["/", "", ".", "..", "/a/..", "/a\0b"] {
            check(&["/data", nowhere], &[], None);
        }
        let many: Vec<String> = (0..=MAX_VOLUMES).map(|number| format!("/{number}")).collect();
        check(&many.iter().map(String::as_str).collect::<Vec<_>>(), &[], None);
    }

    #[test]
    fn what_the_request_mounts_is_on_top_of_volumes() {
        let mut case = Case::new();
        // The image may have /var/run as a link to /run.
        case.mount(bind("/src", "/run/app"));
        case.image_volumes =
            vec![ImageVolume { destination: "/var/run/app".into(), source: "/volumes/0".into() }];
        let list = case.generate().unwrap().mounts;
        let at = |source: &str| list.iter().position(|mount| mount.source == Path::new(source)).unwrap();
        assert!(at("/volumes/0") < at("/src"));
    }
}
