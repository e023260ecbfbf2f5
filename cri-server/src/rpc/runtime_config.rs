//! RuntimeConfig.

use proto::cri::{CgroupDriver, LinuxRuntimeConfiguration, RuntimeConfigResponse};

/// The cgroup driver: cgroupfs is the only one that the configuration accepts.
pub fn runtime_config() -> RuntimeConfigResponse {
    let linux = LinuxRuntimeConfiguration { cgroup_driver: CgroupDriver::Cgroupfs as i32 };
    RuntimeConfigResponse { linux: Some(linux) }
}
