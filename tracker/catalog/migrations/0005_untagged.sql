-- serves: 3
--
-- When tags left a manifest: one whose tag has just moved away is kept for as long as one that has just been pulled.
-- By triggers, so that programs of schema 3 write it down too; and as rows that are only added, because changing a row
-- of the manifest that a tag leaves would make pushes that swap tags wait for each other in a circle.

create table tags_left (
    repository_id bigint not null,
    manifest_id bigint not null,
    at timestamptz not null default now()
);
create index tags_left_manifest on tags_left (repository_id, manifest_id, at);
create index tags_left_at on tags_left (at);

create function note_tag_left() returns trigger language plpgsql as $$
begin
    insert into tags_left (repository_id, manifest_id) values (old.repository_id, old.manifest_id);
    return null;
end
$$;
create trigger tags_deleted after delete on tags for each row execute function note_tag_left();
create trigger tags_moved after update of manifest_id on tags for each row
    when (old.manifest_id <> new.manifest_id) execute function note_tag_left();
