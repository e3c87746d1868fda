/* SPDX-License-Identifier: Apache-2.0 */
/* Reading ELF files through libelf. */
#include "tools/doctor_elf.h"

#include <errno.h>
#include <fcntl.h>
#include <gelf.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

typedef struct file {
    int descriptor;
    Elf *elf;
} file_t;

static bool open_file(const char *path, file_t *file)
{
    (void)elf_version(EV_CURRENT);
    file->elf = NULL;
    file->descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (file->descriptor >= 0)
        file->elf = elf_begin(file->descriptor, ELF_C_READ_MMAP, NULL);
    return file->elf != NULL;
}

static void close_file(file_t *file)
{
    if (file->elf != NULL)
        elf_end(file->elf);
    if (file->descriptor >= 0)
        close(file->descriptor);
}

/* "#!/usr/bin/env python3": the word that names the program. */
static void read_script(const char *bytes, size_t size, iq_elf_facts_t *facts)
{
    char line[256] = "", *rest = NULL;
    if (size < 3 || bytes[0] != '#' || bytes[1] != '!')
        return;
    snprintf(line, sizeof(line), "%.*s", (int)(size - 2 < sizeof(line) ? size - 2 : sizeof(line) - 1), bytes + 2);
    line[strcspn(line, "\n")] = '\0';
    char *word = strtok_r(line, " \t", &rest), *next = strtok_r(NULL, " \t", &rest);
    if (word != NULL && next != NULL && strlen(word) >= 4 && strcmp(word + strlen(word) - 4, "/env") == 0)
        word = next;
    snprintf(facts->interpreter, sizeof(facts->interpreter), "%s", word != NULL ? word : "");
}

static void read_segments(Elf *elf, iq_elf_facts_t *facts)
{
    size_t count = 0, size;
    const char *bytes = elf_rawfile(elf, &size);
    bool dynamic = false;
    (void)elf_getphdrnum(elf, &count);
    for (size_t i = 0; i < count; i++) {
        GElf_Phdr header;
        if (gelf_getphdr(elf, (int)i, &header) == NULL)
            continue;
        dynamic = dynamic || header.p_type == PT_DYNAMIC;
        if (header.p_type == PT_INTERP && bytes != NULL && header.p_offset + header.p_filesz <= size)
            snprintf(facts->interpreter, sizeof(facts->interpreter), "%.*s", (int)header.p_filesz, bytes + header.p_offset);
    }
    facts->is_static = !dynamic;
}

/* The data of the first section of a type, and its header. */
static Elf_Data *section_of(Elf *elf, GElf_Word type, GElf_Shdr *header)
{
    for (Elf_Scn *section = NULL; (section = elf_nextscn(elf, section)) != NULL;)
        if (gelf_getshdr(section, header) != NULL && header->sh_type == type)
            return elf_getdata(section, NULL);
    return NULL;
}

static void read_dynamic(Elf *elf, iq_elf_facts_t *facts)
{
    GElf_Shdr header;
    GElf_Dyn entry;
    Elf_Data *data = section_of(elf, SHT_DYNAMIC, &header);
    for (int i = 0; data != NULL && gelf_getdyn(data, i, &entry) != NULL && entry.d_tag != DT_NULL; i++) {
        if (entry.d_tag != DT_RPATH && entry.d_tag != DT_RUNPATH)
            continue;
        const char *text = elf_strptr(elf, header.sh_link, entry.d_un.d_val);
        snprintf(facts->run_path, sizeof(facts->run_path), "%s", text != NULL ? text : "");
        facts->run_path_is_old = entry.d_tag == DT_RPATH;
    }
}

bool iq_elf_read(const char *path, iq_elf_facts_t *facts, char *error)
{
    file_t file;
    size_t size = 0;
    memset(facts, 0, sizeof(*facts));
    if (!open_file(path, &file)) {
        snprintf(error, DOCTOR_TEXT, "%s cannot be read: %s", path, file.descriptor < 0 ? strerror(errno) : elf_errmsg(-1));
        close_file(&file);
        return false;
    }
    facts->is_elf = elf_kind(file.elf) == ELF_K_ELF;
    if (facts->is_elf) {
        read_segments(file.elf, facts);
        read_dynamic(file.elf, facts);
    } else {
        const char *bytes = elf_rawfile(file.elf, &size);
        if (bytes != NULL)
            read_script(bytes, size, facts);
    }
    close_file(&file);
    return true;
}

static void look_in_table(Elf *elf, GElf_Word type, const char *name, iq_elf_symbol_t *symbol)
{
    GElf_Shdr header;
    GElf_Sym entry;
    Elf_Data *data = section_of(elf, type, &header);
    for (int i = 0; data != NULL && gelf_getsym(data, i, &entry) != NULL; i++) {
        const char *text = elf_strptr(elf, header.sh_link, entry.st_name);
        if (text == NULL || strcmp(text, name) != 0)
            continue;
        if (entry.st_shndx == SHN_UNDEF)
            symbol->wanted = symbol->wanted || type == SHT_DYNSYM;
        else
            symbol->defined = true;
    }
}

iq_elf_symbol_t iq_elf_symbol(const char *path, const char *name)
{
    iq_elf_symbol_t symbol = {false, false};
    file_t file;
    if (open_file(path, &file) && elf_kind(file.elf) == ELF_K_ELF) {
        look_in_table(file.elf, SHT_DYNSYM, name, &symbol);
        look_in_table(file.elf, SHT_SYMTAB, name, &symbol);
    }
    close_file(&file);
    return symbol;
}

static bool text_around(const char *bytes, size_t size, const char *part, char *found)
{
    const char *at = memmem(bytes, size, part, strlen(part));
    if (at == NULL)
        return false;
    while (at > bytes && at[-1] >= ' ' && at[-1] < 127)
        at--;
    snprintf(found, DOCTOR_TEXT, "%.*s", (int)strnlen(at, (size_t)(bytes + size - at)), at);
    return true;
}

bool iq_elf_text(const char *path, const char *part, char *found)
{
    file_t file;
    size_t size = 0;
    const char *bytes = open_file(path, &file) ? elf_rawfile(file.elf, &size) : NULL;
    bool holds = bytes != NULL && text_around(bytes, size, part, found);
    close_file(&file);
    return holds;
}
