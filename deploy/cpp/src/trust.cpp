// What a vehicle accepts: signing keys (Ed25519, RFC 8032), and the release of a bundle.
#include <fcntl.h>
#include <openssl/pem.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <iomanip>
#include <memory>

#include "bundle.hpp"
#include "error.hpp"

namespace tessera {

namespace {

using Key = std::shared_ptr<EVP_PKEY>;

Key read_key(const fs::path &file) {
    const std::optional<std::string> pem = read_file(file);
    if (!pem) throw refused(file.string(), ": cannot read the key");
    const std::unique_ptr<BIO, int (*)(BIO *)> memory(BIO_new_mem_buf(pem->data(), static_cast<int>(pem->size())),
                                                      BIO_free);
    const Key key(PEM_read_bio_PUBKEY(memory.get(), nullptr, nullptr, nullptr), EVP_PKEY_free);
    if (!key || EVP_PKEY_id(key.get()) != EVP_PKEY_ED25519)
        throw refused(file.string(),
                      ": not a public Ed25519 key in PEM; make it with `openssl pkey -in key.pem -pubout ",
                      "-out public.pem`");
    return key;
}

bool is_valid(const Key &key, const std::string &signature, const std::string &content) {
    const std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX *)> context(EVP_MD_CTX_new(), EVP_MD_CTX_free);
    const auto bytes = [](const std::string &of) { return reinterpret_cast<const unsigned char *>(of.data()); };
    return EVP_DigestVerifyInit(context.get(), nullptr, nullptr, nullptr, key.get()) == 1 &&
           EVP_DigestVerify(context.get(), bytes(signature), signature.size(), bytes(content), content.size()) == 1;
}

// What ran on a vehicle, as release.json of its folder says it; empty if nothing did.
struct Ran {
    int64_t release = 0;                       // the highest
    std::map<std::string, std::string> plans;  // target and network -> sha256 of the latest plan's record
};

Ran read_ran(const fs::path &file) {
    struct stat found;
    if (stat(file.c_str(), &found) != 0 && errno == ENOENT) return {};
    const Json state = parse_json(read_file(file).value_or(""));
    Ran ran;
    bool known = state.is_object() && state.contains("release") && state["release"].is_number_integer();
    if (known) ran.release = state["release"].get<int64_t>();
    if (known && state.contains("plans")) {
        known = state["plans"].is_object();
        for (const auto &[place, digest] : state["plans"].items())
            ran.plans[place] = digest.is_string() ? digest.get<std::string>() : "";
    }
    if (!known)
        throw refused(file.string(), ": does not say what ran here; write {\"release\": N} into it, the highest");
    return ran;
}

// A file or folder that is open until the end of the block.
struct Open {
    Open(const fs::path &path, int flags) : handle(open(path.c_str(), flags | O_CLOEXEC, 0666)) {}
    ~Open() {
        if (handle >= 0) close(handle);
    }
    Open(const Open &) = delete;
    Open &operator=(const Open &) = delete;
    const int handle;
};

// At any time the file has either the whole old or the whole new content.
void write_atomically(const fs::path &file, const std::string &content) {
    const fs::path fresh = file.parent_path() / text(".", file.filename().string(), ".", getpid());
    const Open opened(fresh, O_WRONLY | O_CREAT | O_TRUNC), folder(file.parent_path(), O_RDONLY);
    const auto length = static_cast<ssize_t>(content.size());
    if (opened.handle < 0 || write(opened.handle, content.data(), content.size()) != length ||
        fsync(opened.handle) != 0 || rename(fresh.c_str(), file.c_str()) != 0 || fsync(folder.handle) != 0) {
        const int why = errno;
        unlink(fresh.c_str());
        throw refused(file.string(), ": cannot write (", std::strerror(why), ")");
    }
}

constexpr const char *kRan = "release.json";

using Plans = std::map<std::string, std::string>;

// Stores what ran in addition to what is there. Of plans that are not signed, the one that is there remains.
void store(const fs::path &file, int64_t release, const Plans &unsigned_plans, const Plans &signed_plans) {
    const auto changed = [&](Ran &ran) {
        const Ran before = ran;
        ran.release = std::max(ran.release, release);
        ran.plans.insert(unsigned_plans.begin(), unsigned_plans.end());
        for (const auto &[place, digest] : signed_plans) ran.plans[place] = digest;
        return ran.release != before.release || ran.plans != before.plans;
    };
    Ran ran = read_ran(file);
    if (!changed(ran)) return;
    const fs::path folder = file.parent_path();
    std::error_code error;
    fs::create_directories(folder, error);
    if (error)
        throw refused(folder.string(), ": cannot keep what ran (", std::strerror(error.value()),
                      "); choose another --state");
    const Open lock(folder, O_RDONLY);
    flock(lock.handle, LOCK_EX);
    ran = read_ran(file);  // another process may have stored more
    if (changed(ran)) write_atomically(file, Json{{"release", ran.release}, {"plans", ran.plans}}.dump());
}

// The file with the signature of another one: orin.sig of orin.json, SHA256SUMS.sig of SHA256SUMS.
fs::path signature_of(fs::path file) {
    return file.replace_extension(".sig");
}

}  // namespace

std::optional<time_t> parse_time(const std::string &expires) {
    std::tm utc{};
    const char *rest = strptime(expires.c_str(), "%Y-%m-%dT%H:%M:%S", &utc);
    if (rest == nullptr) return std::nullopt;
    if (*rest == '.') rest += 1 + std::strspn(rest + 1, "0123456789");
    int hours = 0, minutes = 0;
    char sign = '+', end = 0;
    if (std::strcmp(rest, "Z") != 0 &&
        // NOLINTNEXTLINE(*err34-c,*number-conversion): two digits fit
        (std::sscanf(rest, "%c%2d:%2d%c", &sign, &hours, &minutes, &end) != 3 || (sign != '+' && sign != '-')))
        return std::nullopt;
    return timegm(&utc) - (sign == '-' ? -60L : 60L) * (60 * hours + minutes);
}

void Trust::require_signed(const fs::path &signed_file, const std::string &content) const {
    std::vector<Key> read;
    std::vector<std::string> names;
    for (const fs::path &key : keys) read.push_back(read_key(key)), names.push_back(key.string());
    const std::string who = join(names, " or ");
    const fs::path file = signature_of(signed_file);
    const std::optional<std::string> signature = read_file(file);
    if (!signature)
        throw refused(signed_file.string(), ": is not signed (", file.filename().string(),
                      " is missing), and only what ", who, " signed is accepted");
    for (const Key &key : read)
        if (is_valid(key, *signature, content)) return;
    throw refused(file.string(), ": not the signature of ", signed_file.filename().string(), " by the key ", who,
                  ": one of them was changed, or it is another's");
}

void Trust::require_current(const fs::path &file, int64_t release, const std::string &expires) const {
    const time_t now = std::time(nullptr);
    std::tm utc{};
    const std::optional<time_t> end = parse_time(expires);
    if (end && *end <= now)
        throw refused(file.string(), ": expired at ", expires, ", and the clock says ",
                      std::put_time(gmtime_r(&now, &utc), "%FT%TZ"), "; take a newer release");
    const fs::path record = state / kRan;
    const int64_t before = read_ran(record).release;
    if (release < before && !allow_older)
        throw refused(file.string(), ": is release ", release, ", but release ", before, " ran here before, says ",
                      record.string(), "; take a newer release, or run this one with --allow-older");
}

void Trust::require_plan(const fs::path &record, const std::string &content, const std::string &place,
                         const fs::path &bundle) const {
    const std::string digest = sha256(content);
    const fs::path file = state / kRan;
    if (is_file(signature_of(record))) {
        require_signed(record, content);
        return store(file, 0, {}, {{place, digest}});  // so that no unsigned one can take its place
    }
    const Ran ran = read_ran(file);
    const auto before = ran.plans.find(place);
    if (before != ran.plans.end() && before->second != digest)
        throw refused(record.string(), ": is not signed, and another plan ran here before, says ", file.string(),
                      "; sign it with `perception sign ", bundle.string(), " --target ", record.stem().string(),
                      " --key PRIVATE`, or remove that plan there");
    (*opened)[place] = digest;
}

void Trust::accept(int64_t release) const {
    store(state / kRan, release, *opened, {});
}

}  // namespace tessera
