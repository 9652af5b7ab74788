-- serves: 1
--
-- Repositories, blobs, manifests and tags.
--
-- Everything a client may see hangs on a repository: a blob or manifest is stored once, and a row that links it to a
-- repository makes it visible there. The links carry the foreign keys, so neither a blob nor a manifest can go while
-- something of that repository still refers to it.

-- The multicodec code of the hash (0x12 sha2-256, 0x13 sha2-512), then the hash: half the size of the text, in the
-- rows and in every index.
create domain digest as bytea check (
    (octet_length(value) = 33 and get_byte(value, 0) = 18) or (octet_length(value) = 65 and get_byte(value, 0) = 19)
);

-- For people: select digest_text(digest) from blobs.
create function digest_text(d bytea) returns text language sql immutable strict parallel safe as $$
    select case get_byte(d, 0) when 18 then 'sha256:' else 'sha512:' end || encode(substring(d from 2), 'hex')
$$;

create table repositories (
    id bigint generated always as identity primary key,
    name text collate "C" not null unique check (length(name) between 1 and 255),
    created_at timestamptz not null default now()
);

create table blobs (
    id bigint generated always as identity primary key,
    digest digest not null unique,
    size bigint not null check (size >= 0),
    -- CIDv1 of the UnixFS DAG.
    root bytea not null check (octet_length(root) = 36),
    -- The piece table: sha256 of each piece of 1 MiB; an empty blob has one, empty, piece.
    hashes bytea not null check (octet_length(hashes) = 32 * greatest(1, (size + 1048575) / 1048576)),
    created_at timestamptz not null default now()
);
-- Hashes do not compress.
alter table blobs alter column hashes set storage external;

create table repository_blobs (
    repository_id bigint not null references repositories,
    blob_id bigint not null references blobs,
    created_at timestamptz not null default now(),
    primary key (repository_id, blob_id)
);
create index repository_blobs_blob on repository_blobs (blob_id);

create table manifests (
    id bigint generated always as identity primary key,
    digest digest not null unique,
    body bytea not null,
    created_at timestamptz not null default now()
);

-- Orders claims by when they were signed; times would tie.
create sequence claim_numbers;

create table repository_manifests (
    repository_id bigint not null references repositories,
    manifest_id bigint not null references manifests,
    -- As pushed here: a repository does not decide how another one's clients read the same bytes.
    media_type text not null,
    claim text not null,
    claim_number bigint not null,
    created_at timestamptz not null default now(),
    primary key (repository_id, manifest_id)
);
create index repository_manifests_manifest on repository_manifests (manifest_id, claim_number);

-- What the claim of a repository's manifest names.
create table manifest_blobs (
    repository_id bigint not null,
    manifest_id bigint not null,
    blob_id bigint not null,
    primary key (repository_id, manifest_id, blob_id),
    foreign key (repository_id, manifest_id) references repository_manifests on delete cascade,
    foreign key (repository_id, blob_id) references repository_blobs
);
create index manifest_blobs_blob on manifest_blobs (blob_id, repository_id);

-- The manifests an index refers to.
create table manifest_children (
    repository_id bigint not null,
    parent_id bigint not null,
    child_id bigint not null,
    primary key (repository_id, parent_id, child_id),
    foreign key (repository_id, parent_id) references repository_manifests on delete cascade,
    foreign key (repository_id, child_id) references repository_manifests
);
create index manifest_children_child on manifest_children (repository_id, child_id);

create table tags (
    repository_id bigint not null,
    -- ASCII order is byte order.
    name text collate "C" not null check (length(name) between 1 and 128),
    manifest_id bigint not null,
    created_at timestamptz not null default now(),
    -- The last push, whether or not it moved the tag.
    updated_at timestamptz not null default now(),
    primary key (repository_id, name),
    foreign key (repository_id, manifest_id) references repository_manifests
);
create index tags_manifest on tags (repository_id, manifest_id);
