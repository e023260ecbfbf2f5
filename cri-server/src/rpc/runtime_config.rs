//! RuntimeConfig.

use proto::cri::{CgroupDriver, LinuxRuntimeConfiguration, RuntimeConfigResponse};

use crate::daemon::Daemon;
use crate::host::cgroup::Driver;

/// The cgroup driver.
pub fn runtime_config(daemon: &Daemon) -> RuntimeConfigResponse {
    let driver = match daemon.config.cgroup.driver {
        Driver::Cgroupfs => CgroupDriver::Cgroupfs,
        Driver::Systemd => CgroupDriver::Systemd,
    };
    RuntimeConfigResponse { linux: Some(LinuxRuntimeConfiguration { cgroup_driver: driver as i32 }) }
}
