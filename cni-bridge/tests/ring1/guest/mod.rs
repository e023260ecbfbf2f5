//! What many kernels do not have: VLANs, VLANs on bridges, ipvlan. `make test-guest` runs these tests.

mod bridge_vlan;
mod ipvlan;
mod macvlan;
mod vlan;
