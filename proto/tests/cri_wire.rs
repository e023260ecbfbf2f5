//! Our CRI types and those of the crate `k8s-cri` read each other's bytes.
//!
//! Every message that both know is filled, each field with a value of its own, from our contract; our type encodes
//! it, theirs decodes and encodes it again, and ours must read what it wrote. Theirs is older: fields that it does
//! not know are left out, by name.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]
#![cfg(feature = "cri")]

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, Kind, MapKey, MessageDescriptor, Value};

/// Fields that came after the level of the other crate.
const NEWER: &[&str] = &[
    "ContainerConfig.stop_signal",
    "ContainerStats.io",
    "ContainerStatus.stop_signal",
    "ContainerStatus.user",
    "CpuUsage.psi",
    "ImageSpec.image_ref",
    "LinuxContainerSecurityContext.supplemental_groups_policy",
    "LinuxPodSandboxStats.io",
    "LinuxSandboxSecurityContext.supplemental_groups_policy",
    "MemoryUsage.psi",
    "Mount.image",
    "Mount.image_sub_path",
    "Mount.mount_options",
    "RuntimeFeatures.mount_options",
    "RuntimeFeatures.user_namespaces_host_network",
    "StatusResponse.features",
    "WindowsContainerResources.affinity_cpus",
];

fn contract() -> DescriptorPool {
    let files = protox::compile(["cri/v1/api.proto"], [env!("CARGO_MANIFEST_DIR")]).unwrap();
    DescriptorPool::from_file_descriptor_set(files).unwrap()
}

fn scalar(kind: &Kind, number: u32) -> Value {
    match kind {
        Kind::String => Value::String(format!("text {number}")),
        Kind::Bytes => Value::Bytes(format!("bytes {number}").into()),
        Kind::Bool => Value::Bool(true),
        Kind::Int32 => Value::I32(number as i32 + 100),
        Kind::Int64 => Value::I64(i64::from(number) + (1 << 40)),
        Kind::Uint32 => Value::U32(number + 100),
        Kind::Uint64 => Value::U64(u64::from(number) + (1 << 40)),
        Kind::Double => Value::F64(f64::from(number) + 0.5),
        Kind::Enum(kind) => Value::EnumNumber(kind.values().last().unwrap().number()),
        Kind::Message(kind) => Value::Message(filled(kind)),
        other => panic!("a kind that the CRI does not use: {other:?}"),
    }
}

fn filled(kind: &MessageDescriptor) -> DynamicMessage {
    let mut message = DynamicMessage::new(kind.clone());
    for field in kind.fields() {
        if NEWER.contains(&format!("{}.{}", kind.name(), field.name()).as_str()) {
            continue;
        }
        let value = if field.is_map() {
            Value::Map([(MapKey::String("key".into()), Value::String("value".into()))].into())
        } else if field.is_list() {
            Value::List(vec![
                scalar(&field.kind(), field.number()),
                scalar(&field.kind(), field.number() + 50),
            ])
        } else {
            scalar(&field.kind(), field.number())
        };
        message.set_field(&field, value);
    }
    message
}

fn proto_name(name: &str) -> &str {
    match name {
        "CdiDevice" => "CDIDevice",
        "DnsConfig" => "DNSConfig",
        "IdMapping" => "IDMapping",
        "PodIp" => "PodIP",
        "SeLinuxOption" => "SELinuxOption",
        other => other,
    }
}

fn check<Ours: Message + Default + PartialEq + std::fmt::Debug, Theirs: Message + Default>(
    pool: &DescriptorPool,
    name: &str,
) {
    let kind = pool.get_message_by_name(&format!("runtime.v1.{}", proto_name(name))).unwrap();
    let bytes = filled(&kind).encode_to_vec();
    let ours = Ours::decode(bytes.as_slice()).unwrap();
    assert_eq!(ours.encoded_len(), bytes.len(), "{name}: our type lacks a field of the contract");
    let theirs = Theirs::decode(ours.encode_to_vec().as_slice()).unwrap();
    let back = Ours::decode(theirs.encode_to_vec().as_slice()).unwrap();
    assert!(ours == back, "{name}: expected {ours:#?}, got {back:#?}");
}

macro_rules! check_all {
    ($($name:ident),* $(,)?) => {{
        let pool = contract();
        $(check::<proto::cri::$name, k8s_cri::v1::$name>(&pool, stringify!($name));)*
    }};
}

#[test]
#[rustfmt::skip]
fn each_reads_what_the_other_wrote() {
    check_all!(
        AttachRequest, AttachResponse, AuthConfig, Capability, CdiDevice, CheckpointContainerRequest,
        CheckpointContainerResponse, Container, ContainerAttributes, ContainerConfig, ContainerEventResponse,
        ContainerFilter, ContainerMetadata, ContainerMetrics, ContainerResources, ContainerStateValue,
        ContainerStats, ContainerStatsFilter, ContainerStatsRequest, ContainerStatsResponse, ContainerStatus,
        ContainerStatusRequest, ContainerStatusResponse, ContainerUser, CpuUsage, CreateContainerRequest,
        CreateContainerResponse, Device, DnsConfig, ExecRequest, ExecResponse, ExecSyncRequest, ExecSyncResponse,
        FilesystemIdentifier, FilesystemUsage, GetEventsRequest, HugepageLimit, IdMapping, Image, ImageFilter,
        ImageFsInfoRequest, ImageFsInfoResponse, ImageSpec, ImageStatusRequest, ImageStatusResponse, Int64Value,
        KeyValue, LinuxContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext, LinuxContainerUser,
        LinuxPodSandboxConfig, LinuxPodSandboxStats, LinuxPodSandboxStatus, LinuxRuntimeConfiguration,
        LinuxSandboxSecurityContext, ListContainerStatsRequest, ListContainerStatsResponse, ListContainersRequest,
        ListContainersResponse, ListImagesRequest, ListImagesResponse, ListMetricDescriptorsRequest,
        ListMetricDescriptorsResponse, ListPodSandboxMetricsRequest, ListPodSandboxMetricsResponse,
        ListPodSandboxRequest, ListPodSandboxResponse, ListPodSandboxStatsRequest, ListPodSandboxStatsResponse,
        MemoryUsage, Metric, MetricDescriptor, Mount, Namespace, NamespaceOption, NetworkConfig,
        NetworkInterfaceUsage, NetworkUsage, PodIp, PodSandbox, PodSandboxAttributes, PodSandboxConfig,
        PodSandboxFilter, PodSandboxMetadata, PodSandboxMetrics, PodSandboxNetworkStatus, PodSandboxStateValue,
        PodSandboxStats, PodSandboxStatsFilter, PodSandboxStatsRequest, PodSandboxStatsResponse, PodSandboxStatus,
        PodSandboxStatusRequest, PodSandboxStatusResponse, PortForwardRequest, PortForwardResponse, PortMapping,
        ProcessUsage, PullImageRequest, PullImageResponse, RemoveContainerRequest, RemoveContainerResponse,
        RemoveImageRequest, RemoveImageResponse, RemovePodSandboxRequest, RemovePodSandboxResponse,
        ReopenContainerLogRequest, ReopenContainerLogResponse, RunPodSandboxRequest, RunPodSandboxResponse,
        RuntimeCondition, RuntimeConfig, RuntimeConfigRequest, RuntimeConfigResponse, RuntimeFeatures,
        RuntimeHandler, RuntimeHandlerFeatures, RuntimeStatus, SeLinuxOption, SecurityProfile,
        StartContainerRequest, StartContainerResponse, StatusRequest, StatusResponse, StopContainerRequest,
        StopContainerResponse, StopPodSandboxRequest, StopPodSandboxResponse, SwapUsage, UInt64Value,
        UpdateContainerResourcesRequest, UpdateContainerResourcesResponse, UpdateRuntimeConfigRequest,
        UpdateRuntimeConfigResponse, UserNamespace, VersionRequest, VersionResponse, WindowsContainerConfig,
        WindowsContainerResources, WindowsContainerSecurityContext, WindowsContainerStats, WindowsCpuGroupAffinity,
        WindowsCpuUsage, WindowsFilesystemUsage, WindowsMemoryUsage, WindowsNamespaceOption,
        WindowsNetworkInterfaceUsage, WindowsNetworkUsage, WindowsPodSandboxConfig, WindowsPodSandboxStats,
        WindowsProcessUsage, WindowsSandboxSecurityContext,
    );
}

#[test]
fn an_environment_value_may_be_any_bytes() {
    let value = proto::cri::KeyValue { key: "K".into(), value: vec![0xff, 0x00, 0xfe] };
    assert_eq!(proto::cri::KeyValue::decode(value.encode_to_vec().as_slice()).unwrap(), value);
}
