//! Processors and memory nodes of a new container: those that the node has. The kernel would refuse others only
//! when the OCI runtime writes them, and no error of that names the field.

use proto::cri::ContainerConfig;

use super::cri_config::invalid;
use crate::error::Error;

/// Refuses a request that names processors or memory nodes which are not there. Reads nothing where it names none.
pub fn check(config: &ContainerConfig) -> Result<(), Error> {
    let resources = config.linux.as_ref().and_then(|linux| linux.resources.as_ref());
    let Some(resources) = resources else { return Ok(()) };
    let lists = [
        ("config.linux.resources.cpuset_cpus", &resources.cpuset_cpus, "/sys/devices/system/cpu/online"),
        ("config.linux.resources.cpuset_mems", &resources.cpuset_mems, "/sys/devices/system/node/has_memory"),
    ];
    for (field, asked, file) in lists.into_iter().filter(|(_, asked, _)| !asked.is_empty()) {
        // A kernel without memory nodes has one.
        let present = std::fs::read_to_string(file).unwrap_or_else(|_| "0".into());
        let present = present.trim();
        if let Some(stranger) = missing(asked, present) {
            return Err(invalid(
                field,
                format!("expected numbers among {present}, got {stranger} in {asked:?}"),
            ));
        }
    }
    Ok(())
}

/// The first part of `asked` that is not within `present`. What is no list is for others to refuse.
fn missing<'a>(asked: &'a str, present: &str) -> Option<&'a str> {
    let present: Vec<(u32, u32)> = present.split(',').filter_map(range).collect();
    let inside = |(first, last): (u32, u32)| {
        first <= last && present.iter().any(|(low, high)| *low <= first && last <= *high)
    };
    asked.split(',').find(|part| range(part).is_some_and(|range| !inside(range)))
}

fn range(text: &str) -> Option<(u32, u32)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some((first.parse().ok()?, last.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_node_has_can_be_asked_for() {
        let check = |asked: &str, present: &str, expect: Option<&str>| {
            assert_eq!(missing(asked, present), expect, "{asked} of {present}");
        };
        check("0", "0-1", None);
        check("0-1,1", "0-1", None);
        check("0,2-3", "0-1", Some("2-3"));
        check("1-2", "0-1", Some("1-2"));
        check("999", "0", Some("999"));
        check("5-7", "0-3,5-7", None);
        check("3-5", "0-3,5-7", Some("3-5"));
        check("1-0", "0-3", Some("1-0"));
        check("x,0-", "0", None);
    }
}
