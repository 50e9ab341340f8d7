from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Ticket(_message.Message):
    __slots__ = ("ticket_id", "transfer_id")
    TICKET_ID_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    ticket_id: str
    transfer_id: str
    def __init__(self, ticket_id: _Optional[str] = ..., transfer_id: _Optional[str] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeReply(_message.Message):
    __slots__ = ("version", "protocol", "python_version", "host_name", "uptime_seconds", "active_reads", "resident_bytes", "cpu_seconds", "imageio_cpu_seconds", "load", "cores", "certificate_expires", "stopping")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    PYTHON_VERSION_FIELD_NUMBER: _ClassVar[int]
    HOST_NAME_FIELD_NUMBER: _ClassVar[int]
    UPTIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_READS_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    CPU_SECONDS_FIELD_NUMBER: _ClassVar[int]
    IMAGEIO_CPU_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    CORES_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_EXPIRES_FIELD_NUMBER: _ClassVar[int]
    STOPPING_FIELD_NUMBER: _ClassVar[int]
    version: str
    protocol: int
    python_version: str
    host_name: str
    uptime_seconds: int
    active_reads: int
    resident_bytes: int
    cpu_seconds: float
    imageio_cpu_seconds: float
    load: float
    cores: int
    certificate_expires: int
    stopping: bool
    def __init__(self, version: _Optional[str] = ..., protocol: _Optional[int] = ..., python_version: _Optional[str] = ..., host_name: _Optional[str] = ..., uptime_seconds: _Optional[int] = ..., active_reads: _Optional[int] = ..., resident_bytes: _Optional[int] = ..., cpu_seconds: _Optional[float] = ..., imageio_cpu_seconds: _Optional[float] = ..., load: _Optional[float] = ..., cores: _Optional[int] = ..., certificate_expires: _Optional[int] = ..., stopping: bool = ...) -> None: ...

class DescribeDiskRequest(_message.Message):
    __slots__ = ("ticket",)
    TICKET_FIELD_NUMBER: _ClassVar[int]
    ticket: Ticket
    def __init__(self, ticket: _Optional[_Union[Ticket, _Mapping]] = ...) -> None: ...

class DescribeDiskReply(_message.Message):
    __slots__ = ("size_bytes", "dirty_bitmap", "writable")
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DIRTY_BITMAP_FIELD_NUMBER: _ClassVar[int]
    WRITABLE_FIELD_NUMBER: _ClassVar[int]
    size_bytes: int
    dirty_bitmap: bool
    writable: bool
    def __init__(self, size_bytes: _Optional[int] = ..., dirty_bitmap: bool = ..., writable: bool = ...) -> None: ...

class ListExtentsRequest(_message.Message):
    __slots__ = ("ticket", "start", "length", "incremental")
    TICKET_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    INCREMENTAL_FIELD_NUMBER: _ClassVar[int]
    ticket: Ticket
    start: int
    length: int
    incremental: bool
    def __init__(self, ticket: _Optional[_Union[Ticket, _Mapping]] = ..., start: _Optional[int] = ..., length: _Optional[int] = ..., incremental: bool = ...) -> None: ...

class ListExtentsReply(_message.Message):
    __slots__ = ("extents",)
    EXTENTS_FIELD_NUMBER: _ClassVar[int]
    extents: _containers.RepeatedCompositeFieldContainer[Extent]
    def __init__(self, extents: _Optional[_Iterable[_Union[Extent, _Mapping]]] = ...) -> None: ...

class Extent(_message.Message):
    __slots__ = ("start", "length", "dirty", "zero")
    START_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    DIRTY_FIELD_NUMBER: _ClassVar[int]
    ZERO_FIELD_NUMBER: _ClassVar[int]
    start: int
    length: int
    dirty: bool
    zero: bool
    def __init__(self, start: _Optional[int] = ..., length: _Optional[int] = ..., dirty: bool = ..., zero: bool = ...) -> None: ...

class ReadBlocksRequest(_message.Message):
    __slots__ = ("ticket", "start", "length", "incremental", "window_bytes", "whole_windows", "known", "compress", "bytes_per_second")
    TICKET_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    INCREMENTAL_FIELD_NUMBER: _ClassVar[int]
    WINDOW_BYTES_FIELD_NUMBER: _ClassVar[int]
    WHOLE_WINDOWS_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    COMPRESS_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    ticket: Ticket
    start: int
    length: int
    incremental: bool
    window_bytes: int
    whole_windows: _containers.RepeatedScalarFieldContainer[int]
    known: _containers.RepeatedCompositeFieldContainer[KnownBlock]
    compress: bool
    bytes_per_second: int
    def __init__(self, ticket: _Optional[_Union[Ticket, _Mapping]] = ..., start: _Optional[int] = ..., length: _Optional[int] = ..., incremental: bool = ..., window_bytes: _Optional[int] = ..., whole_windows: _Optional[_Iterable[int]] = ..., known: _Optional[_Iterable[_Union[KnownBlock, _Mapping]]] = ..., compress: bool = ..., bytes_per_second: _Optional[int] = ...) -> None: ...

class KnownBlock(_message.Message):
    __slots__ = ("start", "length", "xxh3")
    START_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    XXH3_FIELD_NUMBER: _ClassVar[int]
    start: int
    length: int
    xxh3: bytes
    def __init__(self, start: _Optional[int] = ..., length: _Optional[int] = ..., xxh3: _Optional[bytes] = ...) -> None: ...

class ReadBlocksReply(_message.Message):
    __slots__ = ("block", "summary")
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    block: Block
    summary: Summary
    def __init__(self, block: _Optional[_Union[Block, _Mapping]] = ..., summary: _Optional[_Union[Summary, _Mapping]] = ...) -> None: ...

class Block(_message.Message):
    __slots__ = ("kind", "start", "length", "xxh3", "data", "zstd")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[Block.Kind]
        KIND_DATA: _ClassVar[Block.Kind]
        KIND_ZERO: _ClassVar[Block.Kind]
        KIND_SAME: _ClassVar[Block.Kind]
    KIND_UNSPECIFIED: Block.Kind
    KIND_DATA: Block.Kind
    KIND_ZERO: Block.Kind
    KIND_SAME: Block.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    XXH3_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    ZSTD_FIELD_NUMBER: _ClassVar[int]
    kind: Block.Kind
    start: int
    length: int
    xxh3: bytes
    data: bytes
    zstd: bytes
    def __init__(self, kind: _Optional[_Union[Block.Kind, str]] = ..., start: _Optional[int] = ..., length: _Optional[int] = ..., xxh3: _Optional[bytes] = ..., data: _Optional[bytes] = ..., zstd: _Optional[bytes] = ...) -> None: ...

class Summary(_message.Message):
    __slots__ = ("blocks", "dirty_bytes", "read_bytes", "moved_bytes", "stalled_seconds")
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    DIRTY_BYTES_FIELD_NUMBER: _ClassVar[int]
    READ_BYTES_FIELD_NUMBER: _ClassVar[int]
    MOVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    STALLED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    blocks: int
    dirty_bytes: int
    read_bytes: int
    moved_bytes: int
    stalled_seconds: float
    def __init__(self, blocks: _Optional[int] = ..., dirty_bytes: _Optional[int] = ..., read_bytes: _Optional[int] = ..., moved_bytes: _Optional[int] = ..., stalled_seconds: _Optional[float] = ...) -> None: ...

class WriteBlocksRequest(_message.Message):
    __slots__ = ("block", "target", "end")
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    block: Block
    target: WriteTarget
    end: WriteEnd
    def __init__(self, block: _Optional[_Union[Block, _Mapping]] = ..., target: _Optional[_Union[WriteTarget, _Mapping]] = ..., end: _Optional[_Union[WriteEnd, _Mapping]] = ...) -> None: ...

class WriteTarget(_message.Message):
    __slots__ = ("ticket", "window_bytes")
    TICKET_FIELD_NUMBER: _ClassVar[int]
    WINDOW_BYTES_FIELD_NUMBER: _ClassVar[int]
    ticket: Ticket
    window_bytes: int
    def __init__(self, ticket: _Optional[_Union[Ticket, _Mapping]] = ..., window_bytes: _Optional[int] = ...) -> None: ...

class WriteEnd(_message.Message):
    __slots__ = ("blocks",)
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    blocks: int
    def __init__(self, blocks: _Optional[int] = ...) -> None: ...

class WriteBlocksReply(_message.Message):
    __slots__ = ("position", "summary")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    position: int
    summary: WriteSummary
    def __init__(self, position: _Optional[int] = ..., summary: _Optional[_Union[WriteSummary, _Mapping]] = ...) -> None: ...

class WriteSummary(_message.Message):
    __slots__ = ("blocks", "written_bytes", "zero_bytes")
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_BYTES_FIELD_NUMBER: _ClassVar[int]
    ZERO_BYTES_FIELD_NUMBER: _ClassVar[int]
    blocks: int
    written_bytes: int
    zero_bytes: int
    def __init__(self, blocks: _Optional[int] = ..., written_bytes: _Optional[int] = ..., zero_bytes: _Optional[int] = ...) -> None: ...

class CompareBlocksRequest(_message.Message):
    __slots__ = ("ticket", "ranges")
    TICKET_FIELD_NUMBER: _ClassVar[int]
    RANGES_FIELD_NUMBER: _ClassVar[int]
    ticket: Ticket
    ranges: _containers.RepeatedCompositeFieldContainer[ExpectedRange]
    def __init__(self, ticket: _Optional[_Union[Ticket, _Mapping]] = ..., ranges: _Optional[_Iterable[_Union[ExpectedRange, _Mapping]]] = ...) -> None: ...

class ExpectedRange(_message.Message):
    __slots__ = ("start", "length", "xxh3")
    START_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    XXH3_FIELD_NUMBER: _ClassVar[int]
    start: int
    length: int
    xxh3: bytes
    def __init__(self, start: _Optional[int] = ..., length: _Optional[int] = ..., xxh3: _Optional[bytes] = ...) -> None: ...

class CompareBlocksReply(_message.Message):
    __slots__ = ("differences", "summary")
    DIFFERENCES_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    differences: Differences
    summary: CompareSummary
    def __init__(self, differences: _Optional[_Union[Differences, _Mapping]] = ..., summary: _Optional[_Union[CompareSummary, _Mapping]] = ...) -> None: ...

class Differences(_message.Message):
    __slots__ = ("differences",)
    DIFFERENCES_FIELD_NUMBER: _ClassVar[int]
    differences: _containers.RepeatedCompositeFieldContainer[Difference]
    def __init__(self, differences: _Optional[_Iterable[_Union[Difference, _Mapping]]] = ...) -> None: ...

class Difference(_message.Message):
    __slots__ = ("start", "length", "zero")
    START_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    ZERO_FIELD_NUMBER: _ClassVar[int]
    start: int
    length: int
    zero: bool
    def __init__(self, start: _Optional[int] = ..., length: _Optional[int] = ..., zero: bool = ...) -> None: ...

class CompareSummary(_message.Message):
    __slots__ = ("compared_bytes", "read_bytes")
    COMPARED_BYTES_FIELD_NUMBER: _ClassVar[int]
    READ_BYTES_FIELD_NUMBER: _ClassVar[int]
    compared_bytes: int
    read_bytes: int
    def __init__(self, compared_bytes: _Optional[int] = ..., read_bytes: _Optional[int] = ...) -> None: ...

class OpenSocketRequest(_message.Message):
    __slots__ = ("ticket", "clear_text")
    TICKET_FIELD_NUMBER: _ClassVar[int]
    CLEAR_TEXT_FIELD_NUMBER: _ClassVar[int]
    ticket: Ticket
    clear_text: bool
    def __init__(self, ticket: _Optional[_Union[Ticket, _Mapping]] = ..., clear_text: bool = ...) -> None: ...

class OpenSocketReply(_message.Message):
    __slots__ = ("port", "token", "wait_seconds")
    PORT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    port: int
    token: bytes
    wait_seconds: int
    def __init__(self, port: _Optional[int] = ..., token: _Optional[bytes] = ..., wait_seconds: _Optional[int] = ...) -> None: ...
