/* SPDX-License-Identifier: Apache-2.0 */
/* A program outside the tree, C and C++ alike: the installed header and the installed library must be of one version and work. */
#include <isgqcoll.h>

#include <stdio.h>
#include <string.h>

int main(void)
{
    int version = 0;
    if (isgq_get_version(&version) != ISGQ_SUCCESS || version != ISGQ_VERSION_CODE) {
        fprintf(stderr, "header %d, library %d\n", ISGQ_VERSION_CODE, version);
        return 1;
    }
    if (strcmp(isgq_get_error_string(ISGQ_ERR_TIMEOUT), "the operation timed out") != 0)
        return 1;

    isgq_quantizer_t quantizer;
    if (isgq_quantizer_create(&quantizer, "uniform:bits=4") != ISGQ_SUCCESS) {
        fprintf(stderr, "%s\n", isgq_get_last_error());
        return 1;
    }
    isgq_quantizer_destroy(quantizer);
    printf("isgqcoll %d.%d.%d\n", ISGQ_VERSION_MAJOR, ISGQ_VERSION_MINOR, ISGQ_VERSION_PATCH);
    return 0;
}
