//! Names of system calls, by what the default profile does with them. Names of all architectures are mixed.

/// Allowed to every container.
pub(super) const ALLOWED: [&str; 12] =
    [FILES, PATHS, ATTRIBUTES, WAITING, MEMORY, PROCESSES, IDENTITY, SIGNALS, SCHEDULING, TIME, IPC, NETWORK];

const FILES: &str = "
    open openat openat2 creat close close_range read write readv writev pread64 pwrite64 preadv pwritev preadv2
    pwritev2 lseek _llseek dup dup2 dup3 pipe pipe2 fcntl fcntl64 flock ioctl fsync fdatasync sync syncfs
    sync_file_range truncate truncate64 ftruncate ftruncate64 fallocate fadvise64 fadvise64_64 readahead
    copy_file_range sendfile sendfile64 splice tee vmsplice getdents getdents64 memfd_create memfd_secret cachestat
    io_setup io_destroy io_submit io_cancel io_getevents io_pgetevents io_pgetevents_time64";

const PATHS: &str = "
    access faccessat faccessat2 chdir fchdir getcwd mkdir mkdirat rmdir link linkat unlink unlinkat symlink symlinkat
    readlink readlinkat rename renameat renameat2 mknod mknodat name_to_handle_at inotify_init inotify_init1
    inotify_add_watch inotify_rm_watch fanotify_mark listmount statmount umask";

const ATTRIBUTES: &str = "
    stat stat64 lstat lstat64 fstat fstat64 fstatat64 newfstatat statx statfs statfs64 fstatfs fstatfs64 chmod fchmod
    fchmodat fchmodat2 chown chown32 fchown fchown32 lchown lchown32 fchownat utime utimes futimesat utimensat
    utimensat_time64 getxattr lgetxattr fgetxattr getxattrat setxattr lsetxattr fsetxattr setxattrat listxattr
    llistxattr flistxattr listxattrat removexattr lremovexattr fremovexattr removexattrat";

const WAITING: &str = "
    poll ppoll ppoll_time64 select _newselect pselect6 pselect6_time64 epoll_create epoll_create1 epoll_ctl
    epoll_ctl_old epoll_wait epoll_wait_old epoll_pwait epoll_pwait2 eventfd eventfd2 futex futex_time64 futex_waitv
    futex_wait futex_wake futex_requeue get_robust_list set_robust_list membarrier rseq";

const MEMORY: &str = "
    brk mmap mmap2 munmap mremap mprotect madvise mincore mlock mlock2 mlockall munlock munlockall msync mseal
    remap_file_pages pkey_alloc pkey_free pkey_mprotect map_shadow_stack";

const PROCESSES: &str = "
    execve execveat exit exit_group fork vfork wait4 waitid waitpid getpid getppid gettid getpgid getpgrp setpgid
    getsid setsid prctl seccomp set_tid_address get_thread_area set_thread_area getrlimit setrlimit ugetrlimit
    prlimit64 getrusage uname sysinfo getcpu getrandom restart_syscall ptrace process_vm_readv process_vm_writev
    process_mrelease pidfd_open pidfd_send_signal landlock_create_ruleset landlock_add_rule landlock_restrict_self
    uretprobe";

const IDENTITY: &str = "
    getuid getuid32 getgid getgid32 geteuid geteuid32 getegid getegid32 getresuid getresuid32 getresgid getresgid32
    getgroups getgroups32 setuid setuid32 setgid setgid32 setreuid setreuid32 setregid setregid32 setresuid
    setresuid32 setresgid setresgid32 setgroups setgroups32 setfsuid setfsuid32 setfsgid setfsgid32 capget capset";

const SIGNALS: &str = "
    kill tkill tgkill pause sigaltstack sigprocmask sigreturn rt_sigaction rt_sigpending rt_sigprocmask
    rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo signalfd
    signalfd4";

const SCHEDULING: &str = "
    sched_yield sched_getaffinity sched_setaffinity sched_getattr sched_setattr sched_getparam sched_setparam
    sched_getscheduler sched_setscheduler sched_get_priority_max sched_get_priority_min sched_rr_get_interval
    sched_rr_get_interval_time64 getpriority setpriority ioprio_get ioprio_set";

const TIME: &str = "
    time times gettimeofday nanosleep alarm getitimer setitimer adjtimex clock_adjtime clock_adjtime64 clock_getres
    clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64 timer_create
    timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create
    timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64";

const IPC: &str = "
    ipc msgctl msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt shmget
    mq_open mq_unlink mq_notify mq_getsetattr mq_timedreceive mq_timedreceive_time64 mq_timedsend
    mq_timedsend_time64";

const NETWORK: &str = "
    socketcall socketpair bind connect listen accept accept4 getsockname getpeername getsockopt setsockopt shutdown
    send sendto sendmsg sendmmsg recv recvfrom recvmsg recvmmsg recvmmsg_time64";

/// Allowed on x86.
pub(super) const X86: &str = "arch_prctl modify_ldt";

/// Allowed on Arm.
pub(super) const AARCH64: &str =
    "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls";

/// Allowed to whom the kernel would allow it.
pub(super) const BY_CAPABILITY: [(&str, &str); 14] = [
    ("DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr
         lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree open_tree_attr perf_event_open
         quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare",
    ),
    ("SYS_BOOT", "reboot"),
    ("SYS_CHROOT", "chroot"),
    ("SYS_MODULE", "delete_module finit_module init_module"),
    ("SYS_PACCT", "acct"),
    ("SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
    ("SYS_RAWIO", "ioperm iopl"),
    ("SYS_TIME", "clock_settime clock_settime64 settimeofday stime"),
    ("SYS_TTY_CONFIG", "vhangup"),
    ("SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("SYSLOG", "syslog"),
    ("BPF", "bpf"),
    ("PERFMON", "perf_event_open"),
];

/// Known and refused with EPERM, unless a capability allows them. `clone3` is not here: its callers expect ENOSYS.
pub(super) const REFUSED: &str = "
    acct add_key bpf chroot clock_settime clock_settime64 delete_module fanotify_init finit_module fsconfig fsmount
    fsopen fspick get_mempolicy init_module io_uring_enter io_uring_register io_uring_setup ioperm iopl kcmp
    kexec_file_load kexec_load keyctl lookup_dcookie mbind migrate_pages mount mount_setattr move_mount move_pages
    nfsservctl open_by_handle_at open_tree open_tree_attr perf_event_open pidfd_getfd pivot_root process_madvise
    quotactl quotactl_fd reboot request_key set_mempolicy set_mempolicy_home_node setdomainname sethostname setns
    settimeofday stime swapoff swapon syslog umount umount2 unshare userfaultfd vhangup vm86 vm86old";
