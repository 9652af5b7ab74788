-- serves: 3
--
-- The complete registry: uploads that outlive a process, objects, referrers, garbage collection, retention, quotas, the
-- audit log and webhooks. A program of schema 2 would look for blobs under their digests, so it cannot go on with this.

-- ------------------------------------------------------------------------------------------------------------- blobs

-- The object that holds the bytes. Until now a blob lay under its digest; from now on under the id of its upload, so
-- that a blob that is collected and one that is pushed again never share a name.
alter table blobs add column object text collate "C";
update blobs set object = case get_byte(digest, 0) when 18 then 'sha256/' else 'sha512/' end
    || substring(encode(substring(digest from 2), 'hex') for 2) || '/' || encode(substring(digest from 2), 'hex');
alter table blobs alter column object set not null;
create unique index blobs_object on blobs (object);
-- When its bytes were last compared with its digest, and whether they were others.
alter table blobs add column scrubbed_at timestamptz;
alter table blobs add column damaged boolean not null default false;
create index blobs_scrubbed on blobs (scrubbed_at nulls first);

-- The grace of a blob without manifest counts from here: set by a push, a mount, and a HEAD that was answered 200.
alter table repository_blobs add column touched_at timestamptz not null default now();
create index repository_blobs_touched on repository_blobs (touched_at);

-- Objects that no blob refers to any more and whose bytes are to go. Written in the transaction that removes the blob.
create table condemned (
    object text collate "C" primary key,
    size bigint not null,
    condemned_at timestamptz not null default now()
);

-- ----------------------------------------------------------------------------------------------------------- uploads

create table uploads (
    id text collate "C" primary key,
    repository text collate "C" not null,
    -- What the client said it would name the blob with, so that the right hash is computed while the bytes come.
    algorithm text not null default 'sha256',
    -- Bytes that are durable.
    size bigint not null default 0,
    -- While it is being completed: the digest that was verified.
    digest digest,
    -- The process that works on it, until held_until unless it says so again. Each new holder counts up generation, and
    -- a process that finds another number there has lost the upload.
    holder text,
    held_until timestamptz,
    generation bigint not null default 0,
    actor text not null default '',
    created_at timestamptz not null default now(),
    touched_at timestamptz not null default now()
);
create index uploads_touched on uploads (touched_at);

-- --------------------------------------------------------------------------------------------------------- manifests

-- What a list of referrers says of a manifest.
alter table repository_manifests add column subject digest;
alter table repository_manifests add column artifact_type text;
alter table repository_manifests add column annotations jsonb;
alter table repository_manifests add column pushed_at timestamptz not null default now();
alter table repository_manifests add column pulled_at timestamptz;
alter table repository_manifests add column pulls bigint not null default 0;
create index repository_manifests_subject on repository_manifests (repository_id, subject) where subject is not null;
alter table tags add column pulled_at timestamptz;

-- A manifest may be deleted although an index refers to it; the index then has a hole, as after a sparse push.
alter table manifest_children drop constraint manifest_children_repository_id_child_id_fkey;

-- ---------------------------------------------------------------------------------------------------------- policies

-- The first part of a repository's name. ``used``: bytes of distinct blobs linked in its repositories.
create table namespaces (
    name text collate "C" primary key,
    quota bigint check (quota >= 0),
    used bigint not null default 0,
    warned_at timestamptz
);
insert into namespaces (name, used)
select name, sum(size) from (
    select distinct split_part(r.name, '/', 1) as name, b.id, b.size from repositories r
    join repository_blobs rb on rb.repository_id = r.id join blobs b on b.id = rb.blob_id
) as distinct_blobs group by name;

-- Tags that never move and never go, as globs over ``repository:tag``.
create table immutable_tags (
    pattern text primary key,
    created_at timestamptz not null default now()
);

-- A tag that some rule covers is kept if at least one condition of at least one rule that covers it holds.
create table retention_rules (
    id bigint generated always as identity primary key,
    repositories text not null,
    tags text not null,
    keep_last integer check (keep_last >= 0),
    pushed_within interval,
    pulled_within interval,
    created_at timestamptz not null default now()
);

-- Runs of the collector, of retention and of the scrubber.
create table runs (
    id bigint generated always as identity primary key,
    kind text not null check (kind in ('collect', 'retention', 'scrub')),
    dry_run boolean not null,
    started_at timestamptz not null default now(),
    ended_at timestamptz,
    figures jsonb not null default '{}',
    error text
);

-- ------------------------------------------------------------------------------------------------- audit and events

create table audit (
    id bigint generated always as identity primary key,
    at timestamptz not null default now(),
    actor text not null,
    address text not null,
    request_id text not null,
    action text not null,
    repository text collate "C",
    reference text,
    digest text,
    detail jsonb not null default '{}'
);
create index audit_at on audit (at);
create index audit_repository on audit (repository, id);

-- Written with the change it tells of; deliveries are made of it afterwards.
create table events (
    id bigint generated always as identity primary key,
    at timestamptz not null default now(),
    type text not null,
    repository text not null,
    data jsonb not null
);
create index events_at on events (at);

create table webhooks (
    id bigint generated always as identity primary key,
    url text not null,
    -- Globs over repositories and event types; empty: all.
    repositories text[] not null default '{}',
    types text[] not null default '{}',
    -- The key of the HMAC; whoever reads the database could forge more than this.
    secret bytea not null,
    enabled boolean not null default true,
    -- Events up to here have been turned into deliveries.
    cursor bigint not null default 0,
    created_at timestamptz not null default now()
);

create table deliveries (
    id bigint generated always as identity primary key,
    webhook_id bigint not null references webhooks on delete cascade,
    event_id bigint not null references events on delete cascade,
    attempts integer not null default 0,
    -- Null: nothing more is tried.
    next_at timestamptz default now(),
    delivered_at timestamptz,
    last_status integer,
    last_error text,
    unique (webhook_id, event_id)
);
create index deliveries_next on deliveries (next_at) where next_at is not null;

-- Attempts that are counted across all tracker processes, by what they are and whose.
create unlogged table throttles (
    key text collate "C" primary key,
    count integer not null,
    until timestamptz not null
);

-- The public root key of the trackers that use this database, written by the first of them: claims that another one
-- signed would be refused by the nodes.
create table root_key (
    only_row boolean primary key default true check (only_row),
    public text not null
);
